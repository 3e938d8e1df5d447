"""What ot_fusion shows in the report: what moved, which layers met, and how each space was matched."""

from __future__ import annotations

from typing import Any

from tmerge_tui.engine.methods.method import Shares
from tmerge_tui.engine.methods.ot_fusion.channel_map import ChannelMap
from tmerge_tui.engine.methods.ot_fusion.fusion import Carried
from tmerge_tui.engine.part import Part
from tmerge_tui.recipe import ATTENTION


def parts(fused: Carried, shares: Shares | None) -> list[Part]:
    """Figures of the projections that have a share in the result; layers and spaces are of all."""
    part = {kind: "attention" for kind in ATTENTION}
    moved = [
        line
        for line in fused.collected("projections")
        if shares is None or shares.get(part.get(line["kind"], "feed_forward"))
    ]
    P = fused.collected("layers")
    return [
        Part("projections", moved),
        Part("layer_plans", {"all": {name: P for name in ("P_in", "P_out", "P_eff", "P")}}),
        Part("spaces", fused.collected("spaces")),
    ]


def spaces_of(space: str, l: int | None, m: int | None, made: ChannelMap, cost: float | None) -> dict[str, Any]:
    """A line of the part `spaces`: of target layer l and source layer m, or of the whole model."""
    n, source = made.shape
    covered = int(made.covered.sum())
    line = {"space": space, "l": l, "m": m, "n": n, "n_source": source, "matched": covered}
    return line | {"spread": made.spread(), "cost": cost}
