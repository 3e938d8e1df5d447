"""Sinkhorn's iteration, accelerated: Anderson mixing on g = log v for a batch of problems (eqs. 8-9, A.3).

One Sinkhorn iteration is the map g -> log b - log K^T u(g) with u = a / K v. Its residual is the logarithm of b over
the column marginal, so the violation that decides about stopping costs nothing extra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tmerge_tui.engine.optimal_transport.kernels import KernelBatch
from tmerge_tui.engine.optimal_transport.marginals import Marginal
from tmerge_tui.engine.optimal_transport.stopping import Stopping

MEMORY = 6
RIDGE = 1e-10  # on the Gram matrix of unit-norm differences
# measure: relative asks that no single row or column is off by more than this many tolerances; fp64 is in use where
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


@dataclass(frozen=True)
class State:
    """A point of each active problem and what one iteration has found there; all of B' rows, fp64."""

    f: Tensor  # [B', n], of mean zero, rounded to the kernel's precision
    g: Tensor  # [B', n'], likewise
    shift: Tensor  # [B', 1]
    r: Tensor  # [B', n'] residual of g
    l1: Tensor  # [B', 1]
    worst: Tensor  # [B', 1]
    measure: Tensor  # [B', 1] what is compared with the tolerance

    def take(self, rows: Tensor) -> State:
        return State(*(getattr(self, field.name)[rows] for field in fields(self)))

    def where(self, chosen: Tensor, other: State) -> State:
        """Its own rows where `chosen` [B', 1] says so, else those of `other`."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return State(*(torch.where(chosen, mine, its) for mine, its in pairs))

    def duals(self, row: int, dtype: torch.dtype, converged: bool, violations: Sequence[float]) -> Duals:
        return Duals(
            f=self.f[row].to(dtype),
            g=self.g[row].to(dtype),
            shift=float(self.shift[row]),
            iterations=len(violations),
            violation=float(self.l1[row]),
            max_violation=float(self.worst[row]),
            converged=converged,
            violations=tuple(violations),
        )


def iterate(
    kernels: KernelBatch, stopping: Stopping, a: Marginal | None = None, b: Marginal | None = None
) -> list[Duals | None]:
    """Duals of every problem of the batch, each stopping by itself; None where the kernel's precision is too small.

    That is where numbers leave the finite range, or where rounding the duals alone costs half of the tolerance. They
    are rounded to it inside the loop, so that the violation is that of the duals returned. A problem that does not
    converge returns the best duals it has seen. Marginals are uniform when not given.
    """
    B, n, m = kernels.shape
    a, b = a or Marginal(n), b or Marginal(m)
    found: list[Duals | None] = [None] * B
    traces: list[list[float]] = [[] for _ in range(B)]
    active = list(range(B))
    g = torch.zeros(B, m, dtype=torch.float64, device=kernels.device)
    best: State | None = None
    mixing = Mixing(g, kernels.spread + b.spread)
    coarse = stopping.relative(a, b) / 2 or math.inf
    for k in range(1, stopping.max_iterations + 1):
        now, rounding = _step(kernels, g, active, a, b, stopping)
        best = now if best is None else now.where(now.measure < best.measure, best)
        table = torch.cat((now.measure, now.l1, best.measure, rounding), 1).tolist()
        staying = []
        for row, (i, (value, violation, least, rounded)) in enumerate(zip(active, table, strict=True)):
            traces[i].append(violation)
            fits, converged = math.isfinite(value) and rounded < coarse, least < stopping.tolerance
            if converged or (fits and k == stopping.max_iterations):
                found[i] = best.duals(row, kernels.dtype, converged, traces[i])
            elif fits:
                staying.append(row)
        if not staying:
            break
        if len(staying) < len(active):
            chosen = torch.tensor(staying, device=kernels.device)
            active = [active[row] for row in staying]
            now, best = now.take(chosen), best.take(chosen)
            mixing.keep(chosen)
        # Sinkhorn's own step never raises the L1 violation: from the best point it is the safe way on.
        astray = now.measure > GROWTH * best.measure
        g = mixing.step(torch.where(astray, best.g, now.g), torch.where(astray, best.r, now.r), astray[:, 0])
        g = _rounded(g - g.mean(1, keepdim=True), kernels.dtype)
    return found


def _step(
    kernels: KernelBatch, g: Tensor, active: Sequence[int], a: Marginal, b: Marginal, stopping: Stopping
) -> tuple[State, Tensor]:
    """What one Sinkhorn iteration finds at g, and what rounding f costs there [B', 1]."""
    log_Kv, log_KTu = kernels.sweep(g, active, a.density)
    exact = a.log - log_Kv
    shift = exact.mean(1, keepdim=True)
    f = _rounded(exact - shift, kernels.dtype)
    r = math.log(a.size) + b.log - g - log_KTu  # the sweep knows a up to its size
    # The columns were summed before f was rounded; the rounding moves them by no more than it moves the rows.
    rows = torch.expm1(f + shift - exact).abs_()
    rounding = a.l1(rows)[:, None]
    l1, worst, measure = violations(rows, torch.expm1(-r).abs_() + rounding, a, b, stopping, kernels.dtype)
    return State(f, g, shift, r, l1[:, None], worst[:, None], measure[:, None]), rounding


def violations(
    rows: Tensor, columns: Tensor, a: Marginal, b: Marginal, stopping: Stopping, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(L1, max, what is compared with the tolerance) [B] of relative marginal errors |Q1/a - 1| [B, n], [B, n'].

    L1 alone would let single channels of a plan lag behind, so `relative` also bounds the largest relative error;
    `absolute` is the paper's max |Q1 - a|.
    """
    l1 = torch.maximum(a.l1(rows), b.l1(columns))
    worst = torch.maximum(a.worst(rows), b.worst(columns))
    if stopping.measure == "absolute":
        return l1, worst, worst
    return l1, worst, torch.maximum(l1, torch.maximum(rows.amax(1), columns.amax(1)) / OUTLIER[dtype])


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double()
