"""What transport costs: correlations between channels (eq. 7), or any matrix.

The solver never holds C. It asks a `Costs` for kernels, C being offset - S and a kernel exp(S / epsilon); the offset
moves into the duals' shift. `CorrelationCosts` makes S of z-scores, one product per layer pair; `DenseCosts` has C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tmerge_tui.errors import NumericsError


class Costs(Protocol):
    """Cost matrices C [n, n'] of B problems of one shape; C = offset - S."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, n, n'"""

    @property
    def device(self) -> torch.device: ...

    @property
    def spread(self) -> float:
        """max - min of any of the matrices, or more."""

    def offset(self, i: int) -> float:
        """Near the middle of C, so that S / epsilon is as small as it can be."""

    def log_kernels(self, out: Tensor, start: int, epsilon: float, rows: Tensor | None = None) -> Tensor:
        """Fills out [B', n, n'] with S / epsilon of the problems from `start` on, in out's precision, and returns it.
        `rows` [k], indices, asks for those alone: out is [B', k, n'] then."""

    def matrix(self, i: int) -> Tensor:
        """C [n, n'] fp64"""


class CorrelationCosts:
    """C = 1 - rho of a layer's z-scores Zx [T, n] with each of Zys [T, n'], all of one width (eq. 7)."""

    spread = 2.0

    def __init__(self, Zx: Tensor, Zys: Sequence[Tensor]) -> None:
        self.Zx, self.Zys = Zx, Zys
        self.shape = (len(Zys), Zx.shape[1], Zys[0].shape[1])
        self.device = Zx.device

    def offset(self, i: int) -> float:
        return 1.0

    def log_kernels(self, out: Tensor, start: int, epsilon: float, rows: Tensor | None = None) -> Tensor:
        Z = self.Zx if rows is None else self.Zx[:, rows]
        scaled = Z.to(out.dtype) / epsilon
        for i, each in enumerate(out, start):
            torch.mm(scaled.T, self.Zys[i].to(out.dtype), out=each)
        return out

    def matrix(self, i: int) -> Tensor:
        return 1 - correlation(self.Zx.double(), self.Zys[i].double())


class DenseCosts:
    """Any matrices C [B, n, n'], or one [n, n'], in fp32 or fp64. Raises NumericsError where they are not finite."""

    def __init__(self, C: Tensor) -> None:
        self.C = C if C.ndim == 3 else C[None]
        bad = int((~self.C.isfinite()).sum())
        if bad:
            found = f"NaN or Inf in {bad} of {self.C.numel()} entries of a cost matrix"
            raise NumericsError(found, "finite costs", "give what must not be matched a large cost")
        self.shape = (self.C.shape[0], self.C.shape[1], self.C.shape[2])
        self.device = self.C.device
        lows, highs = (edge.double() for edge in (self.C.amin((1, 2)), self.C.amax((1, 2))))
        self.spread = float((highs - lows).max())
        self._offsets: list[float] = ((lows + highs) / 2).tolist()

    def offset(self, i: int) -> float:
        return self._offsets[i]

    def log_kernels(self, out: Tensor, start: int, epsilon: float, rows: Tensor | None = None) -> Tensor:
        for i, each in enumerate(out, start):
            C = self.C[i] if rows is None else self.C[i][rows]
            each.copy_((self._offsets[i] - C.double()).div_(epsilon))
        return out

    def matrix(self, i: int) -> Tensor:
        return self.C[i].double()


def zscore(X: Tensor, where: str = "activations") -> Tensor:
    """Z [T, n] fp32 with centred columns of norm 1, so that rho = Zx.T @ Zy is the Pearson correlation.

    Means and norms are fp64. A column that is constant to fp32 rounding has no correlation with anything: it becomes
    zero (rho = 0, cost 1). `where` names model, layer and side in the error. Raises NumericsError on NaN or Inf.
    """
    finite = torch.isfinite(X).all(0)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise NumericsError(
            f"{where}: NaN or Inf in {len(bad)} of {X.shape[1]} channels (first: channel {bad[0]})",
            "finite activations",
            "run the forward pass in float32 (dtype: float32), and check that the checkpoint is sound",
        )
    centred = X.double()
    centred = centred - centred.mean(0)
    norm = centred.norm(dim=0)
    rounding = X.shape[0] ** 0.5 * torch.finfo(torch.float32).eps * X.abs().amax(0)
    varies = norm > rounding
    return torch.where(varies, centred / torch.where(varies, norm, 1.0), 0.0).float()


def correlation(Zx: Tensor, Zy: Tensor) -> Tensor:
    """rho [n, n'] of two layers given as z-scores [T, n] and [T, n']; the cost of eq. 7 is C = 1 - rho."""
    return Zx.T @ Zy
