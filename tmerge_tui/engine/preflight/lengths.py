"""Lengths that fit: what both models were made to read, against what the recipe asks of them."""

from __future__ import annotations

from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe


def fitted(recipe: Recipe, facts: Pair[ModelFacts]) -> tuple[Recipe, list[str]]:
    """(the recipe with lengths that both models can read, what was changed or should be known).

    A table of positions has an end, so lengths beyond it are cut. A model with rotary positions reads further, though
    it was not trained to: a length that the recipe asks for stays and is mentioned; one that is only the default fits.
    """
    notes: list[str] = []
    calibration = recipe.calibration
    asked = "max_length" in calibration.model_fields_set
    longest = _fitting("calibration.max_length", calibration.max_length, asked, (facts.source, facts.target), notes)
    recipe = recipe.model_copy(update={"calibration": calibration.model_copy(update={"max_length": longest})})
    adaptation = recipe.adaptation
    if adaptation is not None:
        reads_source = adaptation.hints is not None or adaptation.distilled
        models = (facts.source, facts.target) if reads_source else (facts.target,)
        given = adaptation.block_length
        asked = "block_length" in adaptation.model_fields_set
        length = _fitting("adaptation.block_length", given, asked, models, notes)
        recipe = recipe.model_copy(update={"adaptation": adaptation.model_copy(update={"block_length": length})})
    return recipe, notes


def _fitting(option: str, length: int, asked: bool, models: tuple[ModelFacts, ...], notes: list[str]) -> int:
    for model in models:
        end = model.positions
        if end is None or length <= end:
            continue
        if model.position_table or not asked:
            notes.append(f"{option}: {length} is more than the {end} positions of {model.label}: {end} is used")
            length = end
        else:
            notes.append(f"{option}: {length} is more than the {end} tokens that {model.label} was made to read")
    return length
