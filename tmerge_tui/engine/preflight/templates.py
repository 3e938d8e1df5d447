"""What chat templates make of conversations: refuse them, rewrite them, leave some of them out, or are not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tmerge_tui.engine.activations.pooling import place
from tmerge_tui.engine.data.corpus import Sample, missing_template, render, shows, uses_template
from tmerge_tui.engine.prepared import Party
from tmerge_tui.errors import DataError
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe


def refused(recipe: Recipe, party: Party, samples: Sequence[Sample]) -> list[str]:
    """Conversations that the model's template does not take, or whose words cannot be placed in what it makes."""
    mode, spans = recipe.calibration.chat_template, recipe.calibration.pooling == "span"
    first, count = None, 0
    for sample in samples:
        if sample.messages is None:
            continue
        try:
            text = render(sample, party.tokenizer, mode)
            if spans:
                place(sample, text, party.tokenizer, mode)
        except DataError as error:
            first, count = first or error, count + 1
    if first is None:
        return []
    return [f"{party.role}: {first}" + (f"\n  and {count - 1} more of {len(samples)}" if count > 1 else "")]


def template_notes(recipe: Recipe, models: Pair[Party], samples: Sequence[Sample]) -> list[str]:
    """Templates that leave out what messages say, and models without one."""
    mode = recipe.calibration.chat_template
    notes = []
    without = models.each(lambda party: missing_template(samples, party.tokenizer, mode))
    one_side = without.target != without.source
    for (role, party), (_, plain) in zip(models.items(), without.items(), strict=True):
        if plain:
            beside = ", the other model reads conversations through its own" if one_side else ""
            notes.append(f"{role}: {party.facts.label} has no chat template: it reads lines `role: content`{beside}")
        notes += _left_out(party, samples, mode)
    return notes


def _left_out(party: Party, samples: Sequence[Sample], mode: str) -> list[str]:
    silent: Counter[str] = Counter()
    talks = [sample for sample in samples if uses_template(sample, party.tokenizer, mode)]
    for sample in talks:
        text = render(sample, party.tokenizer, mode)
        silent.update({m["role"] for m in sample.messages or () if not shows(text, [m["content"]])})
    return [
        f"{party.role}: the chat template of {party.facts.label} does not show what {role} says, or not as it stands, "
        f"in {count} of the first {len(talks)} conversations"
        for role, count in sorted(silent.items())
    ]
