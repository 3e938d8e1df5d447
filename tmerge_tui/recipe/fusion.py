"""The recipe's section `fusion`: how plans, or whatever a method has found, become weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from tmerge_tui.recipe.section import Section, option

ProjectionKind = Literal["q", "k", "v", "o", "gate", "up", "down"]
PROJECTIONS: tuple[str, ...] = get_args(ProjectionKind)
ATTENTION: tuple[str, ...] = ("q", "k", "v", "o")
FEED_FORWARD: tuple[str, ...] = ("gate", "up", "down")


class FusionOptions(Section):
    """How plans become weights (section 4 and 5 of the method)."""

    alpha: tuple[Annotated[float, Field(ge=0, le=1)] | Literal["auto"], ...] = option(
        ("auto",),
        "fusion strength in [0, 1]; a list reuses the plans and fuses once per value; auto chooses on validation text, "
        "0 where nothing helps",
        ("outputs", "adapted"),
        equation="eq. 14",
        min_length=1,
    )
    projections: tuple[ProjectionKind, ...] | None = option(
        None, "projections to fuse; all aligned ones when empty", "fusion", equation="eq. 14", expert=True
    )
    layers: tuple[int, ...] | None = option(None, "target layers to fuse; all when empty", "outputs", expert=True)
    k: Annotated[int, Field(ge=1)] | Literal["all"] = option(
        128, "strongest neurons fused in each projection", "fusion", unit="neurons", equation="A.5, eq. 22"
    )
    r: Annotated[int, Field(ge=1)] | None = option(
        128,
        "plan entries kept: among the r largest of their row and of their column; empty keeps all",
        "fusion",
        equation="A.1",
        expert=True,
    )
    coupling: Literal["plan", "barycentric"] = option(
        "plan",
        "multiply by plans as the paper writes it, or by maps normalised to carry weights at their own scale",
        "fusion",
        equation="eq. 14",
    )
    units: Literal["z", "raw"] = option(
        "z",
        "barycentric only: map z-scores, or activations in their own units",
        "fusion",
        equation="eq. 7",
        expert=True,
    )
    norm: Literal["free", "keep"] = option(
        "free",
        "keep rescales each fused row (or column) to the target's norm",
        ("outputs", "adapted"),
        equation="eq. 14",
    )
    reference: Annotated[str, Field(min_length=1)] | None = option(
        None,
        "the model that the source was tuned from (Hub id or folder, same architecture): what is carried is then "
        "source minus it, a task vector, and is added to the target instead of mixed in",
        "fusion",
        expert=True,
    )
    biases: bool = option(True, "fuse biases that both models have", "fusion", equation="eq. 14", expert=True)

    @model_validator(mode="before")
    @classmethod
    def _alpha_list(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("alpha"), (int, float, str)):
            return {**data, "alpha": [data["alpha"]]}
        return data

    @model_validator(mode="after")
    def _fits(self) -> FusionOptions:
        if self.units == "raw" and self.coupling != "barycentric":
            raise ValueError("units: raw needs coupling: barycentric (a plan's entries have no units)")
        if len(set(self.alpha)) != len(self.alpha):
            raise ValueError("alpha: each value once")
        if "auto" in self.alpha and len(self.alpha) > 1:
            raise ValueError("alpha: auto stands alone, or give numbers")
        return self

    @property
    def mixing(self) -> str:
        """How what is carried meets the target's weights: "added", or as `norm` says."""
        return self.norm if self.reference is None else "added"

    @property
    def searched(self) -> bool:
        """Whether the run itself chooses alpha, for each kind of projection."""
        return self.alpha == ("auto",)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The strengths to fuse at; none when they are yet to be searched."""
        return tuple(alpha for alpha in self.alpha if alpha != "auto")
