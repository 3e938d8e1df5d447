"""Every merge method that a recipe can name."""

from __future__ import annotations

from tmerge_tui.engine.methods.ls_merge.stage import LatentSpaceMerge
from tmerge_tui.engine.methods.method import Method
from tmerge_tui.engine.methods.ot_fusion.stage import OtFusionMethod
from tmerge_tui.engine.methods.transport_merge.stage import TransportMerge
from tmerge_tui.recipe import Recipe

METHODS: dict[str, Method] = {
    method.name: method for method in (TransportMerge(), OtFusionMethod(), LatentSpaceMerge())
}


def strength_is_chosen(recipe: Recipe) -> bool:
    """Whether validation text chooses the strength: where it is searched, and among several unless all are measured;
    always where methods are compared, which are ranked by what they tell of it."""
    count = len(METHODS[recipe.method].strengths(recipe))
    several = count > 1 and recipe.evaluation.controls_at == "chosen"
    return count == 0 or several or bool(recipe.compare_methods)
