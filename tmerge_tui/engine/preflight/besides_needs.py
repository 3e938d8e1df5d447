"""What measurements beside the hold-out take: general text, where a gain comes from, and the bound of a selection."""

from __future__ import annotations

from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe

GENERAL_TOKENS = 300  # of a general text, where it is not longer than what a model reads of one: those that ship


def besides_needs(recipe: Recipe, models: Pair[ModelFacts], each: float, passes: int) -> tuple[dict[str, float], float]:
    """({what for: FLOP}, texts that are read); `each` is the tokens of a held-out text, `passes` the times that target,
    results and placebos read one, without what is trained."""
    evaluation, general = recipe.evaluation, recipe.evaluation.general
    options = recipe.adaptation
    arms = 0 if options is None else options.trainings // len(options.seeds)
    results = len(recipe.fusion.alpha)
    variants = passes + arms
    reading = 2.0 * (variants * models.target.parameters + evaluation.source * models.source.parameters)
    tokens = min(GENERAL_TOKENS, recipe.calibration.max_length)
    work, texts = {"general text": 0.0, "attribution": 0.0}, 0.0
    if general is not None:
        bound = 0 if general.bound is None else general.validation * (1 + results + arms)
        work["general text"] = tokens * (general.samples * reading + 2.0 * bound * models.target.parameters)
        texts += general.samples * (variants + evaluation.source) + bound
    if evaluation.attribution is not None and evaluation.source:
        work["attribution"] = each * recipe.calibration.holdout * reading
        texts += recipe.calibration.holdout * (variants + 1)
    return work, texts
