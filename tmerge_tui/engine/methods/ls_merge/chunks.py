"""A weight matrix as chunks of c numbers and back, exactly: an identity in between gives back every bit in fp32.

Row-major, filled up with zeros, over the root mean square of the matrix. The mean is not taken off: what is close to
zero could not be given back to the bit, and matrices of projections have none to speak of. In fp64, whose rounding is
far below a bit of fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def count_of(numbers: int, c: int) -> int:
    """Chunks that so many numbers fill."""
    return math.ceil(numbers / c)


def scale_of(W: Tensor) -> float:
    """Root mean square; 1 for a matrix of zeros."""
    found = float(W.double().square().mean().sqrt())
    return found or 1.0


def to_chunks(W: Tensor, c: int, scale: float, squash: bool) -> Tensor:
    """fp64 [n, c] of a matrix of any shape; squash: sign(x) log1p|x| of the scaled numbers x."""
    flat = W.double().flatten() / scale
    if squash:
        flat = flat.abs().log1p().copysign(flat)  # -0 stays that
    return torch.nn.functional.pad(flat, (0, count_of(flat.numel(), c) * c - flat.numel())).view(-1, c)


def from_chunks(chunks: Tensor, shape: tuple[int, ...], scale: float, squash: bool) -> Tensor:
    """The inverse of `to_chunks`, in the type of `chunks`; what was filled up falls away."""
    flat = chunks.flatten()[: math.prod(shape)]
    if squash:
        flat = flat.abs().expm1().copysign(flat)
    return (flat * scale).view(shape)


def filled(index: Tensor, numbers: int, c: int) -> Tensor:
    """bool [..., c]: which numbers of the chunks at `index` (int64 [...]) are weights and not filled up."""
    return index.unsqueeze(-1) * c + torch.arange(c, device=index.device) < numbers
