"""The modules that compute a projection, and which way round they keep their weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Linear:
    """y = W x + b, whatever class computes it."""

    d_out: int
    d_in: int
    biased: bool
    transposed: bool  # W is stored in x out


def linear_of(module: nn.Module) -> Linear | None:
    """nn.Linear and its kin, out x in; the Conv1D of GPT-2, in x out; None for anything else."""
    from transformers.pytorch_utils import Conv1D

    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        d_out, d_in = weight.shape
        return Linear(d_out, d_in, biased=module.bias is not None, transposed=False)
    if isinstance(module, Conv1D):
        d_in, d_out = weight.shape
        return Linear(d_out, d_in, biased=module.bias is not None, transposed=True)
    return None
