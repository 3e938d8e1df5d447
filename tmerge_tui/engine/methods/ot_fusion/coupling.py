"""Plans between two sets of channels from their costs: exact, entropic or one to one. A plan T [n, n'] sums to 1."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import ot
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tmerge_tui.engine.optimal_transport.cost import DenseCosts
from tmerge_tui.engine.optimal_transport.sinkhorn import plan, solve_fast
from tmerge_tui.errors import NumericsError
from tmerge_tui.recipe import OtFusion

ROUNDING = 1e-9  # of the smaller of both marginals: mass below is what fp64 leaves over
STEPS = 10_000_000  # of the network simplex at most
MASS = 1e-6  # of the uniform mass, which every channel keeps: no marginal is zero


@dataclass(frozen=True)
class Coupling:
    T: Tensor  # fp64 [n, n'], on the CPU
    cost: float  # <C, T>
    converged: bool = True


def couple(C: Tensor, options: OtFusion, a: Tensor | None = None, b: Tensor | None = None) -> Coupling:
    """The plan of `options.solver` for costs C [n, n'] and marginals a [n], b [n'], uniform where None.

    hard: min(n, n') pairs of equal mass, whatever the marginals; the channels left over have none. Raises NumericsError
    for costs that are not finite, and where a plan is not found.
    """
    costs = DenseCosts(C.double())
    if options.solver == "sinkhorn":
        (solution,) = solve_fast(costs, options.epsilon, a=a, b=b)
        T = plan(costs, options.epsilon, solution).double().cpu()
        return Coupling(T, solution.cost, solution.converged)
    C = costs.matrix(0).cpu()
    T = assigned(C) if options.solver == "hard" else exact(C, a, b)
    return Coupling(T, float((C * T).sum()))


def exact(C: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """The plan T [n, n'] fp64 of least cost, by POT's network simplex: at most n + n' - 1 entries."""
    a, b = (uniform(size) if mass is None else mass.double().cpu() for mass, size in zip((a, b), C.shape, strict=True))
    with warnings.catch_warnings():  # said by the error below
        warnings.simplefilter("ignore", UserWarning)
        T, log = ot.emd(a.numpy(), b.numpy(), C.numpy(), numItermax=STEPS, log=True)
    if log["warning"] is not None:
        raise NumericsError(
            f"no exact plan of {C.shape[0]} x {C.shape[1]} channels: {log['warning']}",
            "a plan within ten million steps",
            "set ot_fusion.solver: sinkhorn",
        )
    T = torch.from_numpy(T)
    return T.masked_fill(torch.minimum(a[:, None], b) * ROUNDING > T, 0)


def assigned(C: Tensor) -> Tensor:
    """The assignment of least cost, T [n, n'] fp64 with min(n, n') entries."""
    rows, columns = linear_sum_assignment(C.numpy())
    T = torch.zeros(C.shape, dtype=torch.float64)
    T[rows, columns] = 1 / len(rows)
    return T


def in_order(n: int, m: int) -> Tensor:
    """The plan T [n, m] fp64 of two sequences that keep their order: mass where i of n and j of m overlap."""
    low = torch.maximum((torch.arange(n) / n).double()[:, None], (torch.arange(m) / m).double())
    high = torch.minimum(((torch.arange(n) + 1) / n).double()[:, None], ((torch.arange(m) + 1) / m).double())
    T = (high - low).clamp_min(0)
    return T.masked_fill(ROUNDING**0.5 / max(n, m) > T, 0)


def uniform(size: int) -> Tensor:
    return torch.full((size,), 1 / size, dtype=torch.float64)


def marginal(strength: Tensor | None) -> Tensor | None:
    """Mass in proportion to `strength` [n] >= 0, no channel without any; None stays None."""
    if strength is None:
        return None
    strength = strength.double().cpu()
    total = float(strength.sum())
    if not total > 0:
        return uniform(len(strength))
    mass = strength / total + MASS / len(strength)
    return mass / mass.sum()
