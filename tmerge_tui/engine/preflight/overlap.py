"""What two tokenizers have in common, as far as a teacher needs it: no weight is read.

Shared vocabulary is of what tokens spell in bytes; positions with a teacher are those of the target's tokens at which
the source has something to say about what comes next. A tokenizer that normalises reads other bytes than a text has,
which is judged by the texts themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.data.vocabulary import read_vocabulary
from tmerge_tui.engine.preflight.reading import unread
from tmerge_tui.engine.prepared import Party
from tmerge_tui.engine.training.distillation import same_tokenizer
from tmerge_tui.engine.training.teacher import paired_positions
from tmerge_tui.errors import DataError, ModelError
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe.adaptation import Teacher


@dataclass(frozen=True)
class Overlap:
    """Shares of 1; None where a tokenizer does not read bytes, and then `refused` says why."""

    vocabulary: float | None  # of the target's tokens, those that the source has too
    positions: float | None  # of the target's predictions, those with a teacher
    unread: Pair[float]  # share of the text that does not come back from the tokenizer
    refused: str = ""


def overlap(models: Pair[Party], samples: Sequence[Sample], options: Teacher, mode: str) -> Overlap:
    """Of what the two tokenizers make of some texts."""
    lost = models.each(lambda party: unread(party.tokenizer, [sample.plain for sample in samples]))
    if same_tokenizer(models.target.tokenizer, models.source.tokenizer, samples, mode):
        return Overlap(1.0, 1.0, lost)  # token by token, whatever bytes those stand for
    try:
        spelled = models.each(lambda party: set(read_vocabulary(party.tokenizer, party.facts.vocab).ordered))
    except ModelError as error:
        return Overlap(None, None, lost, error.found)
    shared = len(spelled.target & spelled.source) / max(len(spelled.target), 1)
    sides = [(party.tokenizer, party.facts.vocab) for party in (models.source, models.target)]
    try:
        paired, whole = paired_positions(samples, sides, mode, options)
    except DataError as error:
        return Overlap(shared, None, lost, error.found)
    return Overlap(shared, paired / max(whole, 1), lost)
