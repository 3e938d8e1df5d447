"""Sinkhorn's iteration, accelerated: Anderson mixing on g = log v for a batch of problems (eqs. 8-9, A.3).

One Sinkhorn iteration is the map g -> log b - log K^T u(g) with u = a / K v. Its residual is the logarithm of b over
the column marginal, so the violation that decides about stopping costs nothing extra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tmerge_tui.engine.optimal_transport.kernels import KernelBatch

MEMORY = 6
RIDGE = 1e-10  # on the Gram matrix of unit-norm differences
# stop: relative asks that no single row or column is off by more than this many tolerances; fp64 is in use where
# convergence is slow, so that what is left of the violation moves the plan more
OUTLIER = {torch.float32: 5.0, torch.float64: 2.0}
GROWTH = 4.0  # an accelerated step may raise the violation this much over the best before it is taken back


@dataclass(frozen=True)
class Duals:
    """log Q_ij = f_i + g_j + shift + log K_ij; f, g of mean zero, in the kernel's precision."""

    f: Tensor
    g: Tensor
    shift: float
    iterations: int
    violation: float  # L1
    max_violation: float
    converged: bool
    violations: tuple[float, ...]


class Mixing:
    """The last MEMORY differences of iterates and residuals of every problem; type II, least squares in fp64.

    Where Sinkhorn's map is nearly piecewise linear, differences tell little and a mixed step can lead astray. A problem
    that was led astray forgets its past; a step beyond the spread that any plain step has is not taken.
    """

    def __init__(self, x: Tensor, spread: float) -> None:
        self.spread = spread
        self.dx = x.new_zeros(x.shape[0], MEMORY, x.shape[1])
        self.dr = torch.zeros_like(self.dx)
        self.last: tuple[Tensor, Tensor] | None = None
        self.count = 0

    def step(self, x: Tensor, r: Tensor, astray: Tensor) -> Tensor:
        """The next iterate [B, n'] from iterates x and residuals r; `astray` [B] tells where the last one failed."""
        if self.last is None:
            self.last = (x, r)
            return x + r
        slot = self.count % MEMORY
        self.dx[:, slot] = x - self.last[0]
        self.dr[:, slot] = r - self.last[1]
        self._forget(astray)
        self.count += 1
        self.last = (x, r)
        used = min(self.count, MEMORY)
        dx, dr = self.dx[:, :used], self.dr[:, :used]
        size = dr.norm(dim=2)[:, :, None]
        size = torch.where(size > 0, size, 1.0)
        gram = (dr @ dr.mT) / (size * size.mT) + RIDGE * torch.eye(used, dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(gram, (dr @ r[:, :, None]) / size) / size
        mixed = x + r - ((dx + dr).mT @ weights)[:, :, 0]
        wild = ~(mixed.amax(1) - mixed.amin(1) <= self.spread)
        self._forget(wild)
        return torch.where(wild[:, None], x + r, mixed)

    def _forget(self, which: Tensor) -> None:
        self.dx[which] = 0
        self.dr[which] = 0

    def keep(self, chosen: Tensor) -> None:
        self.dx, self.dr = self.dx[chosen], self.dr[chosen]
        if self.last is not None:
            self.last = (self.last[0][chosen], self.last[1][chosen])


def iterate(kernels: KernelBatch, max_iterations: int, tolerance: float, stop: str) -> list[Duals | None]:
    """Duals of every problem of the batch, each stopping by itself; None where the kernel's precision is too small.

    That is where numbers leave the finite range, or where rounding the duals alone costs half of the tolerance. They
    are rounded to it inside the loop, so that the violation is that of the duals returned. A problem that does not
    converge returns the best duals it has seen.
    """
    B, n, m = kernels.shape
    found: list[Duals | None] = [None] * B
    traces: list[list[float]] = [[] for _ in range(B)]
    active = list(range(B))
    g = torch.zeros(B, m, dtype=torch.float64, device=kernels.device)
    best: dict[str, Tensor] = {}
    mixing = Mixing(g, kernels.spread)
    coarse = (tolerance if stop == "relative" else tolerance * max(n, m)) / 2 or math.inf
    for k in range(1, max_iterations + 1):
        log_Kv, log_KTu = kernels.sweep(g, active)
        exact = -math.log(n) - log_Kv
        shift = exact.mean(1, keepdim=True)
        f = _rounded(exact - shift, kernels.dtype)
        r = math.log(n) - math.log(m) - g - log_KTu
        # The columns were summed before f was rounded; the rounding moves them by no more than it moves the rows.
        rows = torch.expm1(f + shift - exact).abs_()
        rounding = rows.mean(1, keepdim=True)
        l1, worst, measure = violations(rows, torch.expm1(-r).abs_() + rounding, stop, kernels.dtype)
        now = {
            "f": f,
            "g": g,
            "shift": shift,
            "r": r,
            "l1": l1[:, None],
            "worst": worst[:, None],
            "measure": measure[:, None],
        }
        better = measure < best["measure"][:, 0] if best else torch.ones_like(measure, dtype=torch.bool)
        best = {name: torch.where(better[:, None], x, best[name]) for name, x in now.items()} if best else now
        table = torch.stack((measure, l1, best["measure"][:, 0], rounding[:, 0])).T.tolist()
        staying = []
        for row, (i, (value, violation, least, rounded)) in enumerate(zip(active, table, strict=True)):
            traces[i].append(violation)
            fits, converged = math.isfinite(value) and rounded < coarse, least < tolerance
            if converged or (fits and k == max_iterations):
                found[i] = Duals(
                    f=best["f"][row].to(kernels.dtype),
                    g=best["g"][row].to(kernels.dtype),
                    shift=float(best["shift"][row]),
                    iterations=k,
                    violation=float(best["l1"][row]),
                    max_violation=float(best["worst"][row]),
                    converged=converged,
                    violations=tuple(traces[i]),
                )
            elif fits:
                staying.append(row)
        if not staying:
            break
        if len(staying) < len(active):
            chosen = torch.tensor(staying, device=kernels.device)
            active = [active[row] for row in staying]
            best = {name: x[chosen] for name, x in best.items()}
            g, r, measure = g[chosen], r[chosen], measure[chosen]
            mixing.keep(chosen)
        # Sinkhorn's own step never raises the L1 violation: from the best point it is the safe way on.
        astray = measure > GROWTH * best["measure"][:, 0]
        g = torch.where(astray[:, None], best["g"], g)
        r = torch.where(astray[:, None], best["r"], r)
        g = mixing.step(g, r, astray)
        g = _rounded(g - g.mean(1, keepdim=True), kernels.dtype)
    return found


def violations(rows: Tensor, columns: Tensor, stop: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(L1, max, what is compared with the tolerance) [B] of relative marginal errors |Q1/a - 1| [B, n], [B, n'].

    L1 is the mean of the relative errors (a is uniform). It alone would let single channels of a plan lag behind, so
    `relative` also bounds the largest one; `absolute` is the paper's max |Q1 - a|.
    """
    l1 = torch.maximum(rows.mean(1), columns.mean(1))
    worst = torch.maximum(rows.amax(1) / rows.shape[1], columns.amax(1) / columns.shape[1])
    if stop == "absolute":
        return l1, worst, worst
    return l1, worst, torch.maximum(l1, torch.maximum(rows.amax(1), columns.amax(1)) / OUTLIER[dtype])


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double()
