"""The source's reference (`fusion.reference`): a relative of the same architecture, what the source was before it was
tuned. Raises nothing of its own: what is wrong with it is a list of problems."""

from __future__ import annotations

from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.layout import Layout
from tmerge_tui.recipe import ModelChoice, Recipe


def reference_choice(recipe: Recipe) -> ModelChoice | None:
    """The model that the recipe names, at the commit that an earlier run has written down. Its code never runs."""
    if recipe.fusion.reference is None:
        return None
    choice = ModelChoice(model=recipe.fusion.reference)
    known = (recipe.resolved or {}).get("reference") or {}
    if choice.is_folder or not known.get("commit") or known.get("model") != choice.model:
        return choice
    return choice.model_copy(update={"revision": known["commit"]})


def unlike(source: ModelFacts, reference: ModelFacts) -> list[str]:
    """Why one cannot be subtracted from the other: the first projection in which they differ."""
    ours, theirs = (_shapes(facts.layout) for facts in (source, reference))
    differing = [place for place in (*ours, *theirs) if ours.get(place) != theirs.get(place)]
    if source.model_type == reference.model_type and not differing:
        return []
    if source.model_type != reference.model_type:
        found = f"{reference.name} is a {reference.model_type}, the source {source.name} a {source.model_type}"
    else:
        layer, kind = differing[0]
        sides = [_told(each.get(differing[0])) for each in (theirs, ours)]
        found = f"{kind} of layer {layer} is {sides[0]} in {reference.name} and {sides[1]} in the source {source.name}"
    return [f"fusion.reference: {found}; expected the same architecture; name the model that the source was tuned from"]


def _shapes(layout: Layout) -> dict[tuple[int, str], tuple[int, int]]:
    return {(p.layer, p.kind): (p.d_out, p.d_in) for p in layout.projections}


def _told(shape: tuple[int, int] | None) -> str:
    return "missing" if shape is None else f"{shape[0]} x {shape[1]}"
