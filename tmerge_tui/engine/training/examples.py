"""What a model is trained on: texts as token ids with labels, cut or padded into blocks, and where their words lie.

Plain text reads begin-of-text (where the tokenizer has one), the text, end-of-text; messages read what the chat
template makes of them. A block remembers which samples lie in it and where, so that a second model, or activations of
it, can be laid beside the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tmerge_tui.engine.activations.pooling import Word, owners, place
from tmerge_tui.engine.data.corpus import Sample, render, uses_template
from tmerge_tui.engine.data.tokens import read_head
from tmerge_tui.errors import DataError
from tmerge_tui.models.forward import padded

IGNORED = -100  # a label that no loss counts
ANSWERS = ("assistant", "model", "gpt")  # roles whose words are answers


@dataclass(frozen=True)
class Example:
    """One sample as one model reads it."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]  # the ids, IGNORED where nothing is to be learnt
    words: dict[Word, tuple[int, ...]]  # the tokens of every word read whole; empty unless asked for


@dataclass(frozen=True)
class Block:
    """One training sequence. `parts` has (sample, position of the sample's first token) of all that lies in it; the
    position is negative where the block before has the beginning."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]


def read_examples(
    samples: Sequence[Sample], tokenizer: Any, length: int, mode: str, answer_only: bool = False, placed: bool = False
) -> list[Example]:
    """The samples in order; what lies behind `length` tokens is cut when it is above 0.

    With `placed`, words are found too. Raises DataError when answers are asked for and there are none, or when
    words have to be placed and the chat template rewrites them.
    """
    if answer_only and not any(_has_answers(sample) for sample in samples):
        raise DataError(
            "the training text has no answers to train on",
            f"chat messages with role {', '.join(ANSWERS)} for adaptation.answer_only",
            "set adaptation.answer_only: false",
        )
    return [_example(sample, tokenizer, length, mode, answer_only, placed) for sample in samples]


def _has_answers(sample: Sample) -> bool:
    return any(message["role"] in ANSWERS for message in sample.messages or ())


def _example(sample: Sample, tokenizer: Any, length: int, mode: str, answer_only: bool, placed: bool) -> Example:
    text = render(sample, tokenizer, mode)
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    head, encoded = read_head(text, tokenizer, length if length > 0 else len(text), **options)
    ids, offsets = list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
    if not uses_template(sample, tokenizer, mode):
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is not None and ids[:1] != [bos]:
            ids, offsets = [bos, *ids], [(0, 0), *offsets]
        if eos is not None and ids[-1:] != [eos]:
            ids, offsets = [*ids, eos], [*offsets, (len(head), len(head))]
    if not ids:  # nothing that a tokenizer without begin-of-text makes of it
        return Example((), (), {})
    stop = len(ids) if length <= 0 else min(length, len(ids))
    where = place(sample, text, tokenizer, mode, len(head)) if placed or answer_only else []
    learnt = [True] * len(ids)
    if answer_only:
        learnt = _answers(sample, where, offsets)
    labels = [token if yes else IGNORED for token, yes in zip(ids, learnt, strict=True)]
    labels[0] = IGNORED  # nothing comes before it
    words = owners(where, offsets, stop) if placed else {}
    return Example(tuple(ids[:stop]), tuple(labels[:stop]), words)


def _answers(sample: Sample, where: Sequence[tuple[Word, int, int]], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Tokens of the assistant's words, and the one behind each answer, which ends it."""
    spoken = [False] * len(offsets)
    for part, message in enumerate(sample.messages or ()):
        places = [(start, end) for word, start, end in where if word[0] == part]
        if message["role"] not in ANSWERS or not places:
            continue
        first, last = places[0][0], places[-1][1]
        inside = [i for i, (start, end) in enumerate(offsets) if start < last and end > first]
        for i in (*inside, *(inside[-1:] and [inside[-1] + 1])):
            if i < len(offsets):
                spoken[i] = True
    return spoken


def pad_blocks(examples: Sequence[Example], length: int, only: Sequence[int] | None = None) -> list[Block]:
    """One sample a block, cut at `length`; samples with nothing to learn are left out."""
    chosen = range(len(examples)) if only is None else only
    blocks = [Block(examples[i].ids[:length], examples[i].labels[:length], ((i, 0),)) for i in chosen]
    return [block for block in blocks if any(label != IGNORED for label in block.labels)]


def pack_blocks(examples: Sequence[Example], length: int, only: Sequence[int] | None = None) -> list[Block]:
    """All samples one after the other, cut every `length` tokens; the last block is shorter.

    A sample's first label is not counted, so that no sample is predicted from the one before it.
    """
    ids: list[int] = []
    labels: list[int] = []
    begins: list[tuple[int, int]] = []
    for i in range(len(examples)) if only is None else only:
        begins.append((i, len(ids)))
        ids += examples[i].ids
        labels += examples[i].labels
    blocks = []
    for start in range(0, len(ids), length):
        stop = min(start + length, len(ids))
        parts = [(i, b - start) for i, b in begins if b < stop and b + len(examples[i].ids) > start]
        cut = [IGNORED, *labels[start + 1 : stop]]
        if any(label != IGNORED for label in cut):
            blocks.append(Block(tuple(ids[start:stop]), tuple(cut), tuple(parts)))
    return blocks


def collate(blocks: Sequence[Block], pad: int = 0) -> dict[str, Any]:
    """input_ids, attention_mask and labels [B, T], padded on the right; parts and tokens as plain numbers."""
    ids, mask = padded([block.ids for block in blocks], filler=pad)
    labels, _ = padded([block.labels for block in blocks], filler=IGNORED)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "parts": [list(block.parts) for block in blocks],
        "tokens": sum(len(block.ids) for block in blocks),
    }
