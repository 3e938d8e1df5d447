"""The recipe's section `ot_fusion`: how `method: ot_fusion` matches two models, space by space (docs/methods.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tmerge_tui.recipe.section import Section, option


class OtFusion(Section):
    """One map for each space of the layout, and all tensors carried through them; only with method: ot_fusion."""

    cost: Literal["activations", "weights"] = option(
        "activations",
        "compare channels by what they say on the calibration text, or by their weights (no text is read)",
        "plans",
        expert=True,
    )
    solver: Literal["exact", "sinkhorn", "hard"] = option(
        "exact",
        "plans without regularisation (POT's emd), with it (epsilon), or one to one, the rest left as it is",
        "plans",
        expert=True,
    )
    epsilon: float = option(0.05, "sinkhorn only: entropic regularisation", "plans", expert=True, gt=0, le=10)
    marginals: Literal["uniform", "importance"] = option(
        "uniform",
        "mass of a channel: all the same, or its mean size on the text (of its weights)",
        "plans",
        expert=True,
    )
    residual: Literal["joint", "mean", "identity"] = option(
        "joint",
        "the one map of the residual stream: a plan of all that is added to it, the mean of a plan each, or none",
        "plans",
        expert=True,
    )
    depth: Literal["nearest", "plan"] = option(
        "nearest",
        "source layers of a target layer: the one at the same share of the depth, or a layer plan P of their "
        "activations (transport.eta, transport.top_layers)",
        "plans",
        expert=True,
    )

    @model_validator(mode="after")
    def _fits(self) -> OtFusion:
        if self.depth == "plan" and self.cost == "weights":
            raise ValueError(
                "depth: plan compares layers by their activations; set cost: activations or depth: nearest"
            )
        return self
