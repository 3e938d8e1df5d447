"""What text that the source writes will take (`adaptation.synthetic`), at most; nothing where none is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe

IN_FLIGHT = 64  # texts that are written together
CHARACTERS = 4  # bytes of a token of text, on disk


@dataclass(frozen=True)
class WrittenNeeds:
    writing: float = 0.0  # FLOP of both models writing, and reading what was written
    learned: float = 0.0  # tokens of written text, and as many of the real text, that are learnt
    passes: float = 0.0  # forward passes of one step
    tokens: float = 0.0  # that are generated, by each of the two
    texts: int = 0
    disk: int = 0

    @property
    def note(self) -> str:
        return (
            f"each model writes at most {self.texts:,} texts of {self.tokens:,.0f} tokens, once passes over the real "
            "text have stopped helping"
        )


def written_needs(recipe: Recipe, models: Pair[ModelFacts], each: float) -> WrittenNeeds:
    """`each` is a text's tokens. Both models write and read all of it; what is kept counts in three arms of a seed."""
    options = recipe.adaptation
    if options is None or options.synthetic is None:
        return WrittenNeeds()
    asked, seeds = options.synthetic, len(options.seeds)
    given, new = asked.beginning * each, asked.max_tokens
    tokens = asked.asked * (given + new)
    kept = asked.keep * tokens
    parameters = models.target.parameters + models.source.parameters
    # written by both, of which both are told by both; what the source says of what is kept of each
    flops = 2.0 * tokens * parameters + 4.0 * tokens * parameters + 4.0 * kept * models.source.parameters
    event = 4 if models.target.vocab <= 1 << 16 else 6
    cache = 2 * kept * (12 + event * options.teaching.events)
    begun = 2 * 4 * models.target.parameters * seeds  # what the first part has left, of two arms
    return WrittenNeeds(
        writing=flops,
        learned=3.0 * seeds * asked.epochs * kept,
        passes=2.0 * new * -(-asked.asked // IN_FLIGHT),
        tokens=float(asked.asked * new),
        texts=asked.asked,
        disk=int(cache + begun + 2 * CHARACTERS * tokens),
    )
