"""What transport-merge shows in the report: what moved, layer plans, costs, convergence, and pictures of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports
from tmerge_tui.engine.part import Part
from tmerge_tui.models.layout import side_of

PICTURES = 12  # heat maps in a report at most


def parts(
    transports: Transports, figures: Sequence[Mapping[str, Any]], fused: Sequence[str], aligned: Sequence[str]
) -> list[Part]:
    """`fused`, `aligned`: kinds of projections."""
    plans = {kind: transports.layer_plan(kind) for kind in aligned}
    chosen = _chosen(transports, fused)
    return [
        Part("projections", list(figures)),
        Part(
            "layer_plans",
            {
                kind: {name: getattr(plan, name).tolist() for name in ("P_in", "P_out", "P_eff", "P")}
                for kind, plan in plans.items()
            },
        ),
        Part("layer_costs", {side: transports.layer_cost(side).tolist() for side in _sides(transports)}),
        Part(
            "pairs",
            [
                {"l": l, "m": m, "side": side, **pair}
                for l, side in transports.solved()
                for m, pair in transports.pairs(l, side).items()
            ],
        ),
        Part("mass", [asdict(transports.mass(*plan)) for plan in chosen]),
        Part("heatmaps", [vars(transports.heatmap(*plan)) for plan in chosen]),
    ]


def _sides(transports: Transports) -> list[str]:
    return list(dict.fromkeys(side for _, side in transports.solved()))


def _chosen(transports: Transports, kinds: Sequence[str]) -> list[tuple[str, int, int]]:
    """The plans worth a picture: for every side, the source layer that a first and a late target layer lean on most."""
    chosen: list[tuple[str, int, int]] = []
    for kind in kinds:
        P = transports.layer_plan(kind).P
        for end in ("in", "out"):
            side = side_of(kind, "in" if end == "in" else "out")
            for l in sorted({0, P.shape[0] // 2}):
                m = int(P[l].argmax())
                if P[l, m] > 0 and (side, l, m) not in chosen:
                    chosen.append((side, l, m))
    step = max(1, -(-len(chosen) // PICTURES))
    return chosen[::step]
