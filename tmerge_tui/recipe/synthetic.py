"""The recipe's section `adaptation.synthetic`: text that the source writes, trained on before the real text."""

from __future__ import annotations

from tmerge_tui.recipe.section import Section, option


class Synthetic(Section):
    """The source continues or answers training texts; the best of that is learnt first, the real text last."""

    texts: int = option(
        500,
        "training texts that are continued, or answered where they are conversations",
        "written",
        unit="texts",
        ge=2,
    )
    per_text: int = option(4, "continuations of each", "written", ge=1)
    temperature: float = option(0.8, "of what is written; higher is more various", "written", gt=0, le=5)
    max_tokens: int = option(128, "of one continuation at most", "written", unit="tokens", ge=4)
    beginning: float = option(
        0.25, "share of a text's words that are given as its beginning", "written", expert=True, gt=0, lt=1
    )
    keep: float = option(0.5, "share that is kept: where the target is furthest behind the source", "kept", gt=0, le=1)
    ngram: int = option(
        8, "words in a row that must not be in held-out or validation text", "kept", unit="words", expert=True, ge=2
    )
    epochs: float = option(1.0, "passes over what was kept", "kept", unit="passes", expert=True, gt=0)

    @property
    def asked(self) -> int:
        """Texts that are written, at most."""
        return self.texts * self.per_text
