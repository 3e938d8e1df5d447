"""Tokens that both models have: rows of embeddings and head that can be carried from one to the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tmerge_tui.engine.data.vocabulary import Vocabulary, read_vocabulary
from tmerge_tui.models.pair import Pair


def shared_tokens(tokenizers: Pair[Any], rows: Pair[int]) -> Tensor:
    """int64 [S, 2]: rows of the target's and of the source's embeddings for the same token, the target's ascending.

    The same token spells the same bytes, or is the same special token. Of one tokenizer all rows that both have, those
    without a token too. Raises ModelError for a tokenizer whose tokens do not say what bytes they are.
    """
    words = tokenizers.each(lambda tokenizer: tokenizer.get_vocab())
    if words.target == words.source:
        both = torch.arange(min(rows.target, rows.source))
        return torch.stack([both, both], 1)
    known = Pair(
        target=read_vocabulary(tokenizers.target, rows.target), source=read_vocabulary(tokenizers.source, rows.source)
    )
    theirs = _rows(known.source)
    found = sorted((row, theirs[token]) for token, row in _rows(known.target).items() if token in theirs)
    return torch.tensor(found, dtype=torch.int64).view(-1, 2)


def _rows(vocabulary: Vocabulary) -> dict[tuple[bool, bytes], int]:
    """(special, bytes) -> row, the first of several."""
    found: dict[tuple[bool, bytes], int] = {}
    for row, spelled in enumerate(vocabulary.spelled):
        if spelled is not None:
            found.setdefault((False, spelled), row)
    for row, written in vocabulary.special.items():
        found.setdefault((True, written), row)
    return found
