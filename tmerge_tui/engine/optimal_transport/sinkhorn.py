"""Plans by entropic optimal transport (eqs. 8-9, A.3), for any costs and marginals; uniform when none are given.

`solve_plain` is the paper's loop. `solve_fast` finds the same plans for many problems at once, in fewer (anderson.py)
and cheaper (kernels.py) iterations. `solve_pot` asks the POT library. All take the same and return a `Solution` for
each problem: only the duals are kept, and `plan` rebuilds Q exactly where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmerge_tui.engine.optimal_transport.anderson import Duals, iterate, violations
from tmerge_tui.engine.optimal_transport.cost import Costs
from tmerge_tui.engine.optimal_transport.kernels import Kernels, LogKernels, aligned
from tmerge_tui.engine.optimal_transport.marginals import Marginal
from tmerge_tui.engine.optimal_transport.stopping import Stopping
from tmerge_tui.errors import NumericsError

# exp(S / epsilon) and the scalings stay inside fp32 up to this spread of log K: every epsilon from 0.025 on, for costs
# in [0, 2]
KERNEL_SPREAD = 80.0
CERTIFIABLE = 5e-7  # a relative violation that fp32 can still tell from its own rounding
WORKSPACE = {
    "cpu": 32 << 20,
    "cuda": 4 << 30,
}  # bytes of kernels held at once (at least one kernel); CPU: about the last cache


@dataclass(frozen=True)
class Solution:
    """Duals of one plan and how well they solve it: log Q_ij = f_i + g_j + shift - C_ij / epsilon.

    f [n] and g [n'] have mean zero, the scalar `shift` carries their magnitude. They are fp32; fp64 where epsilon or
    the tolerance asks for more than fp32 can express, and from `solve_plain` and `solve_pot`. The violations are those
    of these very duals, after rounding.
    """

    f: Tensor
    g: Tensor
    shift: float
    cost: float  # <C, Q>
    iterations: int
    violation: float  # L1: max of sum |Q1 - a| and sum |Q^T 1 - b|
    max_violation: float  # the paper's: max of |Q1 - a| and |Q^T 1 - b| over all entries
    converged: bool
    solver: str  # "fast" | "fast-log" | "plain" | "pot"
    fell_back: bool = False  # its kernel left the range of fp32, so that the log domain took over
    violations: tuple[float, ...] = ()  # L1, iteration by iteration


def solve_plain(
    costs: Costs, epsilon: float, stopping: Stopping, a: Tensor | None = None, b: Tensor | None = None
) -> list[Solution]:
    """The loop of the paper (eqs. 8-9, A.3), in the log domain and in fp64. Raises as `solve_fast` does."""
    rows, columns = marginals(costs, a, b)
    solutions = []
    for i in range(costs.shape[0]):
        C = costs.matrix(i)
        log_K = -C / epsilon
        log_Kv = torch.logsumexp(log_K, 1)
        trace: list[float] = []
        for _ in range(stopping.max_iterations):
            f = rows.log - log_Kv  # u = a / Kv
            g = columns.log - torch.logsumexp(log_K + f[:, None], 0)  # v = b / K^T u
            log_Kv = torch.logsumexp(log_K + g, 1)
            # |Q1 - a| / a; the columns are exact after the update of g
            off = torch.expm1(f + log_Kv - rows.log).abs()[None]
            l1, _, measure = violations(off, torch.zeros_like(g)[None], rows, columns, stopping, C.dtype)
            trace.append(float(l1))
            if measure < stopping.tolerance:
                break
        solutions.append(_checked(C, epsilon, f, g, (rows, columns), len(trace), trace, stopping, "plain"))
    return solutions


def solve_fast(
    costs: Costs,
    epsilon: float,
    stopping: Stopping | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> list[Solution]:
    """One plan for each problem of `costs`, with marginals a [n] and b [n'] of all of them.

    Kernels are built in batches within a fixed workspace; each problem leaves its batch when it has converged. Where
    costs spread over more than 80 epsilon, and for any problem whose kernel leaves the range of floating point, the log
    domain in fp64 takes over and `solver` says "fast-log". The result of a problem does not depend on the others in its
    batch: on a CPU to the last bit, in the log domain but for rounding in fp64.

    Raises NumericsError for what is no marginal, and for a plan that is not finite even in the log domain.
    """
    stopping = stopping or Stopping()
    B, n, m = costs.shape
    pair = marginals(costs, a, b)
    log_domain = costs.spread / epsilon > KERNEL_SPREAD
    dtype = torch.float64 if log_domain or 0 < stopping.relative(*pair) < CERTIFIABLE else torch.float32
    room = WORKSPACE.get(costs.device.type, WORKSPACE["cpu"]) // (2 if log_domain else 1)
    size = min(B, max(1, room // (n * m * dtype.itemsize)))
    workspace = aligned((size, n, m), dtype, costs.device)
    kernel = LogKernels if log_domain else Kernels
    solutions: list[Solution] = []
    for start in range(0, B, size):
        space = workspace[: min(size, B - start)]
        for i, found in enumerate(_solve_batch(kernel, space, costs, start, epsilon, stopping, pair), start):
            solution = found
            if solution is None and not log_domain:
                space = aligned((1, n, m), torch.float64, costs.device)
                solution = _solve_batch(LogKernels, space, costs, i, epsilon, stopping, pair, fell_back=True)[0]
            if solution is None:
                raise NumericsError("a plan is not finite even in the log domain", hint="use a larger epsilon")
            solutions.append(solution)
    return solutions


def _solve_batch(
    kernel: type[Kernels] | type[LogKernels],
    space: Tensor,
    costs: Costs,
    start: int,
    epsilon: float,
    stopping: Stopping,
    pair: tuple[Marginal, Marginal],
    fell_back: bool = False,
) -> list[Solution | None]:
    """Of the problems from `start` on, as many as `space` has room for; None as `iterate` says it."""
    kernels = kernel(costs.log_kernels(space, start, epsilon), costs.spread / epsilon)

    def solution(i: int, d: Duals) -> Solution:
        offset = costs.offset(start + i)
        return Solution(
            f=d.f,
            g=d.g,
            shift=d.shift + offset / epsilon,  # against C = offset - S the constant moves into the shift
            cost=offset - epsilon * kernels.cost(i, d.f, d.g, d.shift),
            iterations=d.iterations,
            violation=d.violation,
            max_violation=d.max_violation,
            converged=d.converged,
            solver="fast" if kernel is Kernels else "fast-log",
            fell_back=fell_back,
            violations=d.violations,
        )

    return [None if d is None else solution(i, d) for i, d in enumerate(iterate(kernels, stopping, *pair))]


def solve_pot(
    costs: Costs, epsilon: float, stopping: Stopping, a: Tensor | None = None, b: Tensor | None = None
) -> list[Solution]:
    """The same problems given to POT (`ot.sinkhorn`, torch backend) in fp64; log method for small epsilon.

    POT stops on the L2 error of the columns every ten iterations; here as everywhere `converged` is what the returned
    duals show. Raises as `solve_fast` does.
    """
    import ot

    pair = marginals(costs, a, b)
    tolerance = stopping.tolerance
    l2 = tolerance / pair[1].sharpest if stopping.measure == "relative" else tolerance  # bounds every column's error
    solutions = []
    for i in range(costs.shape[0]):
        C = costs.matrix(i)
        log_domain = (abs(costs.offset(i)) + costs.spread / 2) / epsilon > KERNEL_SPREAD  # of C: POT has no offset
        _, log = ot.sinkhorn(
            *(each.vector(C) for each in pair), C, epsilon, method="sinkhorn_log" if log_domain else "sinkhorn",
            numItermax=stopping.max_iterations, stopThr=l2, log=True, warn=False,
        )  # fmt: skip
        f, g = (log["log_u"], log["log_v"]) if log_domain else (log["u"].log(), log["v"].log())
        errors = [float(e) for e in log["err"]]
        solutions.append(_checked(C, epsilon, f, g, pair, log["niter"] + 1, errors, stopping, "pot"))
    return solutions


SOLVERS: dict[str, Callable[..., list[Solution]]] = {
    "fast": solve_fast,
    "plain": solve_plain,
    "pot": solve_pot,
}


def plan(costs: Costs, epsilon: float, solution: Solution, i: int = 0, rows: Tensor | None = None) -> Tensor:
    """Q [n, n'] fp32 of problem i from its duals; `rows`, indices of target channels, gives only those."""
    f, g = solution.f.to(costs.device).double() + solution.shift, solution.g.to(costs.device).double()
    f = f if rows is None else f[rows]
    # the precision of the solve, so that the marginals are the solve's
    out = torch.empty(1, len(f), len(g), dtype=solution.g.dtype, device=costs.device)
    log_K, f = costs.log_kernels(out, i, epsilon, rows)[0], f - costs.offset(i) / epsilon
    if log_K.dtype == torch.float32:
        return log_K.exp_().mul_(f.exp().float()[:, None]).mul_(g.exp().float())
    return (log_K + f[:, None]).add_(g).exp_().float()


def marginals(costs: Costs, a: Tensor | None, b: Tensor | None) -> tuple[Marginal, Marginal]:
    """Of the rows and of the columns. Raises NumericsError for what is no marginal."""
    _, n, m = costs.shape
    return Marginal.of(a, n, costs.device, "a"), Marginal.of(b, m, costs.device, "b")


def _checked(
    C: Tensor,
    epsilon: float,
    f: Tensor,
    g: Tensor,
    pair: tuple[Marginal, Marginal],
    iterations: int,
    trace: Sequence[float],
    stopping: Stopping,
    solver: str,
) -> Solution:
    """A Solution whose cost and violations are those of the duals as they are kept."""
    shift = float(f.double().mean() + g.double().mean())
    f, g = f - f.mean(), g - g.mean()
    Q = torch.exp((f.double()[:, None] + shift) + g.double() - C.double() / epsilon)
    errors = pair[0].errors(Q.sum(1))[None], pair[1].errors(Q.sum(0))[None]
    l1, worst, measure = (float(x) for x in violations(*errors, *pair, stopping, C.dtype))
    return Solution(
        f=f,
        g=g,
        shift=shift,
        cost=float((C * Q).sum()),
        iterations=iterations,
        violation=l1,
        max_violation=worst,
        converged=measure < stopping.tolerance,
        solver=solver,
        violations=tuple(trace),
    )
