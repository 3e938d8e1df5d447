"""One map for each space: how source channels become target channels, from the plan of the two.

Of a plan T [n, n'], what writes into a space is carried by averages over source channels, Phi_out = diag(1 / T 1) T;
what reads from it by Phi_in^T = diag(1 / T^T 1) T^T, which hands each source channel the mean of the target channels
matched to it. Both preserve the function where channels were split: twins write the same, and share what is read.
OTFusion (arXiv 1910.05653) averages columns instead, which is the same for permutations alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SPARSE = 8  # a map with less than one entry in so many is multiplied as a sparse matrix


@dataclass(frozen=True)
class ChannelMap:
    T: Tensor  # [n, n'] >= 0, rows and columns without mass take no part

    @property
    def shape(self) -> tuple[int, int]:
        return self.T.shape[0], self.T.shape[1]

    @cached_property
    def covered(self) -> Tensor:
        """bool [n]: target channels that are matched with any; the others stay as they are."""
        return self.T.sum(1) > 0

    @cached_property
    def _writes(self) -> Tensor:
        return _compact(_averages(self.T, 1))

    @cached_property
    def _reads(self) -> Tensor:
        return _compact(_averages(self.T, 0))

    def write(self, W: Tensor) -> Tensor:
        """Phi_out W: [n', ...] -> [n, ...] in fp32; a row without mass is zero."""
        return _product(self._writes, W)

    def read(self, W: Tensor) -> Tensor:
        """W Phi_in^T: [k, n'] -> [k, n] in fp32; a column without mass is zero."""
        return _product(self._reads, W.T).T

    def permuted(self, order: Tensor) -> ChannelMap:
        """The placebo: source channels in another order, int64 [n']."""
        return ChannelMap(self.T[:, order.to(self.T.device)])

    def to(self, device: torch.device) -> ChannelMap:
        return ChannelMap(self.T.to(device))

    def spread(self) -> float:
        """Source channels that a matched target channel is a mean of: exp of the entropy, mean over channels."""
        P = _averages(self.T, 1)[self.covered]
        return float(torch.special.entr(P).sum(1).exp().mean()) if len(P) else 0.0


def _averages(T: Tensor, dim: int) -> Tensor:
    mass = T.sum(dim, keepdim=True)
    return torch.where(mass > 0, T / torch.where(mass > 0, mass, 1.0), 0.0)


def _compact(matrix: Tensor) -> Tensor:
    matrix = matrix.float()
    return matrix.to_sparse() if int(matrix.count_nonzero()) * SPARSE < matrix.numel() else matrix


def _product(matrix: Tensor, W: Tensor) -> Tensor:
    wide = W.to(matrix.device, torch.float32)
    flat = wide[:, None] if wide.ndim == 1 else wide
    made = torch.sparse.mm(matrix, flat) if matrix.is_sparse else matrix @ flat
    return made[:, 0] if wide.ndim == 1 else made
