"""What of a training text is given to a model that writes: its beginning, or a conversation up to the last answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tmerge_tui.engine.data.corpus import TEMPLATE_DATE, Message, Sample, uses_template
from tmerge_tui.engine.training.examples import ANSWERS
from tmerge_tui.engine.training.sieve import Draft
from tmerge_tui.engine.training.writing import Prompt

WORD = re.compile(r"\S+")
FEW = 4  # words, of scripts without blanks characters, that a text needs to have a beginning and more


@dataclass(frozen=True)
class Opening:
    """A text to be written on; `role` is who answers in a conversation."""

    sample: Sample  # what is given
    role: str = ""

    def draft(self, written: str) -> Draft:
        """The whole text once something was written."""
        given = self.sample.plain
        if self.sample.messages is None:
            text = written.rstrip()
            return Draft(Sample(text=given + text), given, text)
        text = written.strip()
        return Draft(Sample(messages=(*self.sample.messages, {"role": self.role, "content": text})), given, text)

    def prompt(self, tokenizer: Any, mode: str) -> Prompt:
        """As the model reads it: plain text behind begin-of-text, messages through its chat template."""
        text = self.sample.plain
        templated = uses_template(self.sample, tokenizer, mode)
        if templated:
            text = tokenizer.apply_chat_template(
                list(self.sample.messages or ()), tokenize=False, add_generation_prompt=True, date_string=TEMPLATE_DATE
            )
        elif self.sample.messages is not None:
            text += f"\n{self.role}:"
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        bos = tokenizer.bos_token_id
        return Prompt(tuple(ids if templated or bos is None or ids[:1] == [bos] else [bos, *ids]), text)


def openings(samples: Sequence[Sample], beginning: float) -> list[Opening]:
    """Of every sample that has one; short texts and conversations without an answer have none."""
    found = [_opening(sample, beginning) for sample in samples]
    return [one for one in found if one is not None]


def _opening(sample: Sample, beginning: float) -> Opening | None:
    if sample.messages is not None:
        return _question(sample.messages)
    text = sample.text or ""
    ends = [match.end() for match in WORD.finditer(text)]
    if len(ends) < FEW:  # a script without blanks, or next to nothing
        ends = list(range(1, len(text.rstrip()) + 1)) if len(ends) == 1 else []
    if len(ends) < FEW:
        return None
    return Opening(Sample(text=text[: ends[max(1, round(beginning * len(ends))) - 1]]))


def _question(messages: Sequence[Message]) -> Opening | None:
    """Everything before the last answer."""
    places = [i for i, message in enumerate(messages) if message["role"] in ANSWERS]
    if not places or places[-1] == 0:
        return None
    return Opening(Sample(messages=tuple(messages[: places[-1]])), messages[places[-1]]["role"])
