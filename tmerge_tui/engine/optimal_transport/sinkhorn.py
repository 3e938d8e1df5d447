"""Feature plans by entropic optimal transport with uniform marginals (eqs. 8-9, A.3).

`solve_plain` is the paper's loop. `solve_fast` finds the same plans for many pairs of layers at once, in fewer
(anderson.py) and cheaper (kernels.py) iterations. `solve_pot` asks the POT library. All return a `Solution`: only the
duals are kept, and `plan` rebuilds Q exactly where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tmerge_tui.engine.optimal_transport.anderson import iterate, violations
from tmerge_tui.engine.optimal_transport.kernels import Kernels, LogKernels, aligned
from tmerge_tui.errors import NumericsError

Stop = Literal["relative", "absolute"]

KERNEL_EPSILON = 0.025  # exp(rho / epsilon) and the scalings stay inside fp32 for every cost in [0, 2] above this
CERTIFIABLE = 5e-7  # a relative violation that fp32 can still tell from its own rounding
WORKSPACE = {
    "cpu": 32 << 20,
    "cuda": 4 << 30,
}  # bytes of kernels held at once (at least one kernel); CPU: about the last cache


@dataclass(frozen=True)
class Solution:
    """Duals of one plan and how well they solve it: log Q_ij = f_i + g_j + shift - C_ij / epsilon.

    f [n] and g [n'] have mean zero, the scalar `shift` carries their magnitude. They are fp32; fp64 where epsilon or
    the tolerance asks for more than fp32 can express, and in C's precision from `solve_plain` and `solve_pot`. The
    violations are those of these very duals, after rounding.
    """

    f: Tensor
    g: Tensor
    shift: float
    cost: float  # <C, Q>
    iterations: int
    violation: float  # L1: max of sum |Q1 - a| and sum |Q^T 1 - b|, the mean error relative to the marginal
    max_violation: float  # the paper's: max of |Q1 - a| and |Q^T 1 - b| over all entries
    converged: bool
    solver: str  # "fast" | "fast-log" | "plain" | "pot"
    violations: tuple[float, ...] = ()  # L1, iteration by iteration


def solve_plain(
    C: Tensor, epsilon: float, max_iterations: int = 200, tolerance: float = 1e-6, stop: Stop = "relative"
) -> Solution:
    """The loop of the paper (eqs. 8-9, A.3) on a cost matrix [n, n'], in the log domain and in C's precision."""
    n, m = C.shape
    log_a, log_b = -math.log(n), -math.log(m)
    log_K = -C / epsilon
    log_Kv = torch.logsumexp(log_K, 1)
    trace: list[float] = []
    for _ in range(max_iterations):
        f = log_a - log_Kv  # u = a / Kv
        g = log_b - torch.logsumexp(log_K + f[:, None], 0)  # v = b / K^T u
        log_Kv = torch.logsumexp(log_K + g, 1)
        rows = torch.expm1(f + log_Kv - log_a).abs()[None]  # |Q1 - a| / a; the columns are exact after the update of g
        l1, _, measure = violations(rows, torch.zeros_like(g)[None], stop, C.dtype)
        trace.append(float(l1))
        if measure < tolerance:
            break
    return _checked(C, epsilon, f, g, len(trace), trace, tolerance, stop, "plain")


def solve_fast(
    Zx: Tensor,
    Zys: Sequence[Tensor],
    epsilon: float,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    stop: Stop = "relative",
) -> list[Solution]:
    """One plan for each z-scored source layer in `Zys` (each [T, n'], all of one width) against Zx [T, n].

    Kernels are built in batches within a fixed workspace; each problem leaves its batch when it has converged. Below
    epsilon = 0.025, and for any problem whose kernel leaves the range of floating point, the log domain in fp64 takes
    over and `solver` says "fast-log". The result of a problem does not depend on the others in its batch: on a CPU to
    the last bit, in the log domain but for rounding in fp64.
    """
    n, m = Zx.shape[1], Zys[0].shape[1]
    log_domain = epsilon < KERNEL_EPSILON
    dtype = _precision(n, m, epsilon, tolerance, stop)
    room = WORKSPACE.get(Zx.device.type, WORKSPACE["cpu"]) // (2 if log_domain else 1)
    size = min(len(Zys), max(1, room // (n * m * dtype.itemsize)))
    workspace = aligned((size, n, m), dtype, Zx.device)
    solutions: list[Solution] = []
    for start in range(0, len(Zys), size):
        batch = Zys[start : start + size]
        kernel = LogKernels if log_domain else Kernels
        limits = (max_iterations, tolerance, stop)
        solved = _solve_batch(kernel, workspace, Zx, batch, epsilon, limits)
        for Zy, solution in zip(batch, solved, strict=True):
            if solution is None:
                space = aligned((1, n, m), torch.float64, Zx.device)
                solution = _solve_batch(LogKernels, space, Zx, [Zy], epsilon, limits)[0]
            if solution is None:
                raise NumericsError("a plan is not finite even in the log domain", hint="use a larger epsilon")
            solutions.append(solution)
    return solutions


def _solve_batch(
    kernel: type[Kernels] | type[LogKernels],
    workspace: Tensor,
    Zx: Tensor,
    Zys: Sequence[Tensor],
    epsilon: float,
    limits: tuple[int, float, Stop],
) -> list[Solution | None]:
    log_K = workspace[: len(Zys)]
    scaled = Zx.to(workspace.dtype) / epsilon
    for out, Zy in zip(log_K, Zys, strict=True):
        torch.mm(scaled.T, Zy.to(workspace.dtype), out=out)
    kernels = kernel(log_K, 2 / epsilon)
    solver = "fast" if kernel is Kernels else "fast-log"
    solutions: list[Solution | None] = []
    for i, d in enumerate(iterate(kernels, *limits)):
        if d is None:
            solutions.append(None)
            continue
        cost = 1 - epsilon * kernels.cost(i, d.f, d.g, d.shift)
        # against C = 1 - rho the constant moves into the shift
        solutions.append(
            Solution(
                d.f,
                d.g,
                d.shift + 1 / epsilon,
                cost,
                d.iterations,
                d.violation,
                d.max_violation,
                d.converged,
                solver,
                d.violations,
            )
        )
    return solutions


def solve_pot(
    C: Tensor, epsilon: float, max_iterations: int = 200, tolerance: float = 1e-6, stop: Stop = "relative"
) -> Solution:
    """The same problem given to POT (`ot.sinkhorn`, torch backend), in C's precision; log method for small epsilon.

    POT stops on the L2 error of the columns every ten iterations; here as everywhere `converged` is what the returned
    duals show.
    """
    import ot

    n, m = C.shape
    a, b = C.new_full((n,), 1 / n), C.new_full((m,), 1 / m)
    l2 = tolerance / m if stop == "relative" else tolerance  # bounds every column's relative error
    log_domain = epsilon < KERNEL_EPSILON
    method = "sinkhorn_log" if log_domain else "sinkhorn"
    _, log = ot.sinkhorn(a, b, C, epsilon, method=method, numItermax=max_iterations, stopThr=l2, log=True, warn=False)
    f, g = (log["log_u"], log["log_v"]) if log_domain else (log["u"].log(), log["v"].log())
    return _checked(C, epsilon, f, g, log["niter"] + 1, [float(e) for e in log["err"]], tolerance, stop, "pot")


def plan(Zx: Tensor, Zy: Tensor, epsilon: float, solution: Solution, rows: Tensor | None = None) -> Tensor:
    """Q [n, n'] fp32 of two z-scored layers from its duals; `rows`, indices of target channels, gives only those."""
    f, g = solution.f.to(Zx.device).double() + solution.shift, solution.g.to(Zx.device).double()
    Z, f = (Zx, f) if rows is None else (Zx[:, rows], f[rows])
    if solution.g.dtype == torch.float32:
        # the arithmetic of the solve, so that the marginals are the solve's
        K = torch.mm((Z / epsilon).T, Zy).exp_()
        return K.mul_((f - 1 / epsilon).exp().float()[:, None]).mul_(g.exp().float())
    log_K = torch.mm((Z.double() / epsilon).T, Zy.double())
    return (log_K + (f - 1 / epsilon)[:, None]).add_(g).exp_().float()


def _precision(n: int, m: int, epsilon: float, tolerance: float, stop: Stop) -> torch.dtype:
    """fp32 unless its rounding could hide the tolerance; tolerance 0 asks for a fixed number of iterations."""
    relative = tolerance if stop == "relative" else tolerance * max(n, m)
    return torch.float64 if epsilon < KERNEL_EPSILON or 0 < relative < CERTIFIABLE else torch.float32


def _checked(
    C: Tensor,
    epsilon: float,
    f: Tensor,
    g: Tensor,
    iterations: int,
    trace: list[float],
    tolerance: float,
    stop: Stop,
    solver: str,
) -> Solution:
    """A Solution whose cost and violations are those of the duals as they are kept."""
    n, m = C.shape
    shift = float(f.double().mean() + g.double().mean())
    f, g = f - f.mean(), g - g.mean()
    Q = torch.exp((f.double()[:, None] + shift) + g.double() - C.double() / epsilon)
    errors = (Q.sum(1) * n - 1).abs()[None], (Q.sum(0) * m - 1).abs()[None]
    l1, worst, measure = (float(x) for x in violations(*errors, stop, C.dtype))
    cost = float((C * Q).sum())
    return Solution(f, g, shift, cost, iterations, l1, worst, measure < tolerance, solver, tuple(trace))
