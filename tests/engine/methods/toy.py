"""The smallest merge method there can be: every norm of the target a little larger. For the contract, and its price.

What it takes to add one: this folder or file, a line of the registry, and a section of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tmerge_tui.engine.methods.method import Merge, Needs, Shares, Stage
from tmerge_tui.engine.part import Part
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.weights.update import Change
from tmerge_tui.events import Emit
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir


@dataclass(frozen=True)
class Louder:
    """Norm weights times (1 + alpha), or, the placebo, times (1 - alpha)."""

    target: Checkpoint
    alpha: float
    sign: int = 1

    @property
    def key(self) -> tuple[Any, ...]:
        return False, "toy", self.alpha, self.sign

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in self.target.names if "norm" in name and name.endswith("weight"))

    def change(self, name: str, stored: Tensor) -> Change:
        return Change(stored.float() * (1 + self.sign * self.alpha))


class Toy:
    name = "toy"
    about = "Every norm of the target is made a little larger."
    controls = "evaluation.controls"
    validated = False

    def placebos(self, recipe: Recipe) -> tuple[str, ...]:
        return ("softer",)

    def settings(self, recipe: Recipe) -> list[tuple[str, Any]]:
        return [("volume", "up")]

    def needs(self, recipe: Recipe, models: Pair[ModelFacts], rows: int, told: int) -> Needs:
        return Needs("volume", (), memory=0, plans=0, moved=0, flops=0.0, touched=0.0, solves=0.0)

    def too_slow(self, recipe: Recipe, models: Pair[ModelFacts], seconds: float) -> str | None:
        return None

    def stages(self, recipe: Recipe) -> tuple[Stage, ...]:
        return (Stage("toy", "Turn the volume up", 0.2),)

    def match(self, recipe: Recipe, models: Pair[Party]) -> Matching:
        return Matching((), ())

    def check(self, recipe: Recipe, target: Party, matching: Matching, cluster: bool) -> list[str]:
        return []

    def strengths(self, recipe: Recipe) -> tuple[float, ...]:
        return recipe.fusion.alphas

    def merge(self, prepared: Prepared, run: RunDir, emit: Emit, visit: Callable[[LoadedModel], None]) -> Merge:
        target = prepared.target.checkpoint
        with Progress(emit, "toy", "Turning the volume up", 1, "steps") as progress:
            progress.advance()

        def at(alpha: float, shares: Shares | None) -> Louder:
            return Louder(target, alpha)

        def softer(alpha: float, shares: Shares | None) -> Louder:
            return Louder(target, alpha, -1)

        return Merge(at, {"softer": softer}, ("softer",), (), lambda shares: [Part("volume", [1.0])])
