"""Which tokens make which row: the plan both models agree on before either of them runs.

`sample` pools every non-padding token of a sample into one row (the paper, eq. 6). `span` pools the tokens of each
word of the text (of each message's content), so that one text gives many rows and two tokenizers still align; words are
separated by white space, or single letters where a script writes none (`data.tokens.words`). A token that touches
several words belongs to the one it shares most characters with, the first on a tie; special tokens and bare white space
belong to none. A word is a row only when both models read all of it: it owns a token in both, and no token of it was
cut by max_length.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tmerge_tui.engine.data.corpus import Sample, render, render_contents, uses_template
from tmerge_tui.engine.data.tokens import read_head, words
from tmerge_tui.errors import DataError
from tmerge_tui.run_folder import key

Word = tuple[
    int, int, int
]  # (message, first, last + 1): characters of that message's content, the same for every model
WHOLE: Word = (-1, 0, 0)  # the whole sample


@dataclass(frozen=True)
class Rows:
    """The rows of every sample, in order: `words[i]` are those of sample i; none when a model reads no token of it."""

    pooling: str
    words: tuple[tuple[Word, ...], ...]

    @property
    def count(self) -> int:
        """T, the number of rows of X and Y."""
        return sum(map(len, self.words))

    @cached_property
    def sha256(self) -> str:
        return key(self.pooling, self.words)


@dataclass(frozen=True)
class Encoded:
    """One sample as one model reads it: token ids, and the token positions of every word it reads whole."""

    ids: tuple[int, ...]
    tokens: dict[Word, tuple[int, ...]]


def encode(samples: Sequence[Sample], tokenizer: Any, max_length: int, pooling: str, mode: str) -> list[Encoded]:
    """Renders and tokenizes; everything after `max_length` tokens is cut.

    Raises DataError when span pooling cannot place words, because a template rewrites what messages say.
    """
    spans = pooling == "span"
    encoded = []
    for sample in samples:
        text = render(sample, tokenizer, mode)
        templated = uses_template(sample, tokenizer, mode)
        options = {"add_special_tokens": not templated, "return_offsets_mapping": spans}
        head, found = read_head(text, tokenizer, max_length, **options)
        ids = tuple(found["input_ids"])
        if spans:
            places = place(sample, text, tokenizer, mode, len(head))
            tokens = owners(places, found["offset_mapping"], max_length)
        else:
            tokens = {WHOLE: tuple(range(min(len(ids), max_length)))} if ids else {}
        encoded.append(Encoded(ids[:max_length], tokens))
    return encoded


def plan_rows(samples: Sequence[Sample], tokenizers: Sequence[Any], max_length: int, pooling: str, mode: str) -> Rows:
    """The rows that every one of `tokenizers` can give.

    Raises DataError as `encode`, and when fewer than 2 rows are left.
    """
    first, *others = [encode(samples, tokenizer, max_length, pooling, mode) for tokenizer in tokenizers]
    agreed = tuple(
        tuple(word for word in one.tokens if all(other[i].tokens.get(word) for other in others))
        for i, one in enumerate(first)
    )
    rows = Rows(pooling, agreed)
    if rows.count < 2:
        raise DataError(
            f"calibration gives {rows.count} rows of activations",
            "at least 2 to correlate",
            "give more text, or raise calibration.max_length; with pooling: span a word is a row when both models read "
            "all of it",
        )
    return rows


@dataclass(frozen=True)
class Average:
    """The averaging matrix [rows, tokens] of a batch in compressed rows: row i is the mean of its own tokens."""

    tokens: Tensor  # [entries] token positions in the batch laid out flat
    starts: Tensor  # [rows] where each row's entries start
    weights: Tensor  # [entries] fp32: 1 / (tokens of the row)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device) -> Average:
        sizes = torch.tensor([len(row) for row in rows])
        tokens = torch.tensor([token for row in rows for token in row])
        weights = (1.0 / sizes).repeat_interleave(sizes)
        return cls(tokens.to(device), (sizes.cumsum(0) - sizes).to(device), weights.to(device))

    def __matmul__(self, activations: Tensor) -> Tensor:
        """[tokens, n] of any float type -> [rows, n] fp32, accumulated in fp32. Other tokens are never read."""
        return F.embedding_bag(
            self.tokens, activations.float(), self.starts, mode="sum", per_sample_weights=self.weights
        )


def _words(contents: Sequence[str]) -> list[Word]:
    return [(part, *span) for part, text in enumerate(contents) for span in words(text)]


def place(sample: Sample, text: str, tokenizer: Any, mode: str, stop: int | None = None) -> list[tuple[Word, int, int]]:
    """Every word of the sample with its characters [start, end) in the rendered `text`, in order; of plain text only
    those in its first `stop` characters, since no token behind them is asked for.

    The places come from rendering marks instead of contents, and hold only if putting the contents (as they are, or
    trimmed, as many templates do) back at the marks gives `text` again: looking for short contents would find them in
    the template's own words.
    """
    contents = sample.contents
    if sample.messages is None:
        return [(word, word[1], word[2]) for word in _words([contents[0][:stop]])]
    marks = [f"\ue000{part}\ue001" for part in range(len(contents))]
    marked = render_contents(sample, marks, tokenizer, mode)
    between = re.split("\ue000\\d+\ue001", marked)
    if re.findall("\ue000\\d+\ue001", marked) == marks:
        for shown in (contents, tuple(content.strip() for content in contents)):
            if "".join(b + s for b, s in zip(between, (*shown, ""), strict=True)) == text:
                starts, end = [], 0
                for before, content, original in zip(between, shown, contents, strict=False):
                    end += len(before)
                    starts.append(end - (original.find(content) if content else 0))
                    end += len(content)
                return [(word, starts[word[0]] + word[1], starts[word[0]] + word[2]) for word in _words(contents)]
    raise DataError(
        f"the chat template of {tokenizer.name_or_path} rewrites what messages say, so their words cannot be placed: "
        f"{sample.plain[:80]!r}",
        "a template that shows every message as it is, in order, for pooling: span",
        "set calibration.pooling: sample, or calibration.chat_template: off",
    )


def owners(
    places: Sequence[tuple[Word, int, int]], offsets: Sequence[tuple[int, int]], max_length: int
) -> dict[Word, tuple[int, ...]]:
    """The tokens each word owns, without the words that own none or that `max_length` cut."""
    starts = [start for _, start, _ in places]
    owned: dict[Word, list[int]] = {}
    cut: set[Word] = set()
    for position, (first, last) in enumerate(offsets):
        best, most = None, 0
        i = max(bisect_right(starts, first) - 1, 0)
        while i < len(places) and places[i][1] < last:
            word, start, end = places[i]
            shared = min(last, end) - max(first, start)
            if shared > 0 and position >= max_length:
                cut.add(word)
            if shared > most:
                best, most = word, shared
            i += 1
        if best is not None:
            owned.setdefault(best, []).append(position)
    return {word: tuple(owned[word]) for word, _, _ in places if word in owned and word not in cut}
