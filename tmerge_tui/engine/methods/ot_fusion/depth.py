"""Which source layers a target layer takes part of: rows of P [L, M] that sum to 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tmerge_tui.engine.methods.transport_merge.layer_plans import layer_plan
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport

ENTERING, LEAVING = "mlp.in", "down.out"  # where layers are compared: what the stream is, what is added to it


def nearest(L: int, M: int) -> Tensor:
    """P [L, M] fp64: all of the source layer at the same share of the depth, m = round(l (M - 1) / (L - 1))."""
    P = torch.zeros(L, M, dtype=torch.float64)
    for l in range(L):
        P[l, round(l * (M - 1) / max(L - 1, 1))] = 1
    return P


def planned(
    sides: Pair[Callable[[int, str], Tensor]],  # (layer, side) -> z-scores [T, n]
    there: Pair[Tensor],  # bool [L], [M]: layers with a feed-forward, which are compared
    options: Transport,
    advance: Callable[[], None],  # after each target layer
) -> Tensor:
    """P [L, M] fp64 by the paper's layer plan (eqs. 10-13), from costs 1 - CKA that need no match of channels.

    A target layer that takes no part has a row of zeros.
    """
    costs = {
        side: torch.ones(len(there.target), len(there.source), dtype=torch.float64) for side in (ENTERING, LEAVING)
    }
    theirs = torch.arange(len(there.source))[there.source].tolist()
    sizes = {(m, side): _gram(sides.source(m, side)) for m in theirs for side in costs}
    for l in range(len(there.target)):
        for side, C in costs.items() if there.target[l] else ():
            X = sides.target(l, side)
            own = _gram(X)
            for m in theirs:
                both = float((X.T @ sides.source(m, side)).square().sum())
                C[l, m] = 1 - both / max(own * sizes[m, side], 1e-12)
        advance()
    P = layer_plan("all", costs[ENTERING], costs[LEAVING], there, options).P
    mass = P.sum(1, keepdim=True)
    return torch.where(mass > 0, P / torch.where(mass > 0, mass, 1.0), 0.0)


def _gram(Z: Tensor) -> float:
    """|Z^T Z|, of z-scores."""
    return float((Z.T @ Z).norm())
