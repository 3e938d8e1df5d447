"""What the safety screen takes, from the number of its prompts and openings."""

from __future__ import annotations

from dataclasses import dataclass

from tmerge_tui.engine.evaluation.safety_prompts import read_prompts
from tmerge_tui.errors import DataError
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe

PROMPT, OPENING = 50, 4  # tokens: one sentence under a chat template; how an answer opens
TOGETHER = 4  # prompts of one length, which are answered in one batch


@dataclass(frozen=True)
class Needs:
    flops: float = 0.0
    batches: float = 0.0


def safety_needs(recipe: Recipe, models: Pair[ModelFacts], results: int) -> Needs:
    """`results`: models of the target's size that are asked, the target among them. Nothing without its template."""
    options = recipe.evaluation.safety
    if options is None or not models.target.chat_template:
        return Needs()
    try:
        found = read_prompts(options)
    except DataError:
        return Needs()  # the check says what is wrong with the prompts
    openings = sum(2 * (len(found.declines[one.language]) + len(found.complies[one.language])) for one in found.pairs)
    asked = 2 * len(found.pairs)
    tokens = openings * (PROMPT + OPENING) + asked * (PROMPT + options.max_new_tokens)
    passes = openings / recipe.evaluation.batch_size + asked / TOGETHER * options.max_new_tokens
    source = recipe.evaluation.source and models.source.chat_template
    flops = 2.0 * tokens * (results * models.target.parameters + source * models.source.parameters)
    return Needs(flops, passes * (results + source))
