"""Layer plans (eqs. 10-13, A.1-A.2): which source layers a target layer draws on. Pure functions in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmerge_tui.engine.optimal_transport.anderson import Duals, iterate
from tmerge_tui.engine.optimal_transport.kernels import LogKernels
from tmerge_tui.engine.optimal_transport.stopping import Stopping
from tmerge_tui.errors import NumericsError
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport

LARGE_COST = 1000.0  # A.2: beyond it eta grows with the largest cost


@dataclass(frozen=True)
class LayerPlan:
    """Plans of one projection, [L, M] fp64; rows and columns of layers without that projection are zero."""

    projection: str
    P_in: Tensor
    P_out: Tensor
    P_eff: Tensor  # sqrt(P_in * P_out), before top-3
    P: Tensor  # the top_layers largest of each row of P_eff, rescaled to the row's mass
    converged: bool


def layer_plan(projection: str, C_in: Tensor, C_out: Tensor, there: Pair[Tensor], options: Transport) -> LayerPlan:
    """P of one projection from its layer costs [L, M]; `there` says which target and source layers have it."""
    present = there.target[:, None] & there.source
    plans, converged = [], True
    for C in (C_in, C_out):
        P = torch.zeros(C.shape, dtype=torch.float64)
        if present.any():
            duals, block = _solve(C.double()[present].view(int(there.target.sum()), int(there.source.sum())), options)
            P[present] = block.flatten()
            converged = converged and duals.converged
        plans.append(P)
    P_eff = (plans[0] * plans[1]).sqrt()
    return LayerPlan(projection, plans[0], plans[1], P_eff, keep_largest(P_eff, options.top_layers), converged)


def keep_largest(P: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, rescaled to the mass the row had (A.1)."""
    top = P.topk(min(count, P.shape[1]), dim=1)
    kept = torch.zeros_like(P).scatter_(1, top.indices, top.values)
    mass = kept.sum(1, keepdim=True)
    return torch.where(mass > 0, kept * (P.sum(1, keepdim=True) / torch.where(mass > 0, mass, 1.0)), 0.0)


def median_scaled(C: Tensor) -> Tensor:
    """C shifted by its minimum and divided by its median, as the authors' code has it; only shifted if that is zero."""
    shifted = C - C.min()
    median = shifted.median()
    return shifted / median if median > 0 else shifted


def _solve(C: Tensor, options: Transport) -> tuple[Duals, Tensor]:
    cost = median_scaled(C) if options.layer_cost == "median" else C
    if not cost.isfinite().all():
        raise NumericsError(
            "a layer cost is not finite", "costs in [0, 2]", "report this: the feature plans are broken"
        )
    eta = options.eta * max(1.0, float(cost.max()) / LARGE_COST)
    log_K = -cost / eta
    duals = iterate(
        LogKernels(log_K[None], float(cost.max() - cost.min()) / eta),
        Stopping(options.layer_max_iterations, options.layer_tolerance, options.stop),
    )[0]
    if duals is None:
        raise NumericsError("a layer plan is not finite", hint="use a larger eta")
    return duals, torch.exp(log_K + (duals.f + duals.shift)[:, None] + duals.g)
