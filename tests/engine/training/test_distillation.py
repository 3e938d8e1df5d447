"""Distillation within one tokenizer. Reference: the KL of next-token distributions written out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import make_tokenizer
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.training.distillation import TokenTerm, same_tokenizer
from tmerge_tui.engine.training.examples import IGNORED, collate, pad_blocks, read_examples

SAMPLES = [Sample("two rivers meet where the old road bends"), Sample("nobody asked the miller"), Sample("é中 salt")]


class Told:
    """A model that gives the logits it was told, one row for each token id: [vocabulary, vocabulary]."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.device = table, torch.device("cpu")

    def __call__(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def table(vocab: int, seed: int) -> Tensor:
    return torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed))


def test_tokenizers_are_the_same_when_vocabulary_and_ids_are() -> None:
    assert same_tokenizer(make_tokenizer(300), make_tokenizer(300), SAMPLES, "auto")
    assert not same_tokenizer(make_tokenizer(300), make_tokenizer(320), SAMPLES, "auto")


def test_with_one_tokenizer_it_is_the_kl_of_every_labelled_position() -> None:
    tokenizer = make_tokenizer(300)
    examples = read_examples(SAMPLES, tokenizer, 0, "auto")
    batch = collate(pad_blocks(examples, 100))
    batch["labels"][0, 3] = IGNORED
    student, source = table(300, 0), table(300, 1)
    total, count = TokenTerm(Told(source), 0.5).loss(batch, student[batch["input_ids"]])
    expected, positions = 0.0, 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        for t in range(len(ids) - 1):
            if labels[t + 1] != IGNORED:
                p, q = source[ids[t]].softmax(0), student[ids[t]].softmax(0)
                expected += float((p * (p.log() - q.log())).sum())
                positions += 1
    assert count == positions
    assert total.item() == pytest.approx(expected, rel=1e-5)
