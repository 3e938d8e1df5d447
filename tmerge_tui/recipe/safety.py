"""The recipe's section `evaluation.safety`: prompts that a careful assistant declines, beside harmless twins."""

from __future__ import annotations

from pydantic import model_validator

from tmerge_tui.recipe.section import Section, option


class Safety(Section):
    """What is asked, and how long the answers are; the measurement is `tmerge_tui.engine.evaluation.safety`."""

    path: str | None = option(
        None, "file of more pairs (.jsonl, .csv): prompt, twin, and category, language where wanted", "scores"
    )
    shipped: bool = option(True, "ask the 40 English pairs that ship too", "scores")
    max_new_tokens: int = option(
        32, "length of an answer, which is judged by how it opens", "scores", unit="tokens", expert=True, ge=8, le=4096
    )

    @model_validator(mode="after")
    def _asks(self) -> Safety:
        if not self.shipped and self.path is None:
            raise ValueError("shipped: found false and no path; expected pairs of one or the other; give path a file")
        return self
