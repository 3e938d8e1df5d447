"""Distillation. References: KL written out, next-byte probabilities summed by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.tiny import make_tokenizer
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.training.distillation import (
    CLASSES,
    SPECIAL,
    Teacher,
    byte_classes,
    common_classes,
    same_tokenizer,
)
from tmerge_tui.engine.training.examples import IGNORED, collate, pack_blocks, pad_blocks, read_lessons

SAMPLES = [Sample("two rivers meet where the old road bends"), Sample("nobody asked the miller"), Sample("é中 salt")]


class Told:
    """A model that gives the logits it was told, one row for each token id: [vocabulary, vocabulary]."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.device = table, torch.device("cpu")

    def __call__(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def table(vocab: int, seed: int) -> Tensor:
    return torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed))


def teacher(model: Any, theirs: Any, ours: Any, lessons: Any, same: bool) -> Teacher:
    return Teacher.of(model, theirs, ours, SAMPLES, lessons, 100, "auto", same)


def test_tokenizers_are_the_same_when_vocabulary_and_ids_are() -> None:
    assert same_tokenizer(make_tokenizer(300), make_tokenizer(300), SAMPLES, "auto")
    assert not same_tokenizer(make_tokenizer(300), make_tokenizer(320), SAMPLES, "auto")


def test_with_one_tokenizer_it_is_the_kl_of_every_labelled_position() -> None:
    tokenizer = make_tokenizer(300)
    lessons = read_lessons(SAMPLES, tokenizer, 0, "auto")
    batch = collate(pad_blocks(lessons, 100))
    batch["labels"][0, 3] = IGNORED
    student, source = table(300, 0), table(300, 1)
    total, count = teacher(Told(source), tokenizer, tokenizer, lessons, True).loss(batch, student[batch["input_ids"]])
    expected, positions = 0.0, 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        for t in range(len(ids) - 1):
            if labels[t + 1] != IGNORED:
                p, q = source[ids[t]].softmax(0), student[ids[t]].softmax(0)
                expected += float((p * (p.log() - q.log())).sum())
                positions += 1
    assert count == positions
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_every_token_has_the_class_of_its_space_and_first_byte() -> None:
    tokenizer = make_tokenizer(320)
    classes = byte_classes(tokenizer, 330)
    for token, number in tokenizer.get_vocab().items():
        if number in tokenizer.all_special_ids:
            assert classes[number] == SPECIAL
            continue
        text = tokenizer.convert_tokens_to_string([token])
        if "\ufffd" in text:  # half a character
            continue
        space, rest = text.startswith(" "), text.removeprefix(" ").encode()
        assert classes[number] == 257 * space + (rest[0] if rest else 256), token
    assert (classes[320:] == SPECIAL).all() and int(classes.max()) < CLASSES


def test_sentencepiece_spellings_are_understood() -> None:
    vocab = {"<unk>": 0, "▁two": 1, "wo": 2, "▁": 3, "<0x0A>": 4, "é": 5}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    expected = [SPECIAL, 257 + ord("t"), ord("w"), 257 + 256, 10, "é".encode()[0]]
    found = byte_classes(tokenizer, 6).tolist()
    assert found[:5] == expected[:5]


def test_across_tokenizers_the_same_model_of_bytes_costs_nothing() -> None:
    """Two models that give every class the same probability agree, although no token of theirs is shared by id."""
    ours, theirs = make_tokenizer(300), make_tokenizer(340)
    lessons = read_lessons(SAMPLES, ours, 0, "auto", placed=True)
    wanted = torch.rand(CLASSES, generator=torch.Generator().manual_seed(2)) + 0.1

    classes = common_classes(byte_classes(ours, 300), byte_classes(theirs, 340))

    def model(mine: Tensor) -> Tensor:
        members = torch.bincount(mine, minlength=CLASSES)
        return (wanted[mine] / members[mine]).log().expand(len(mine), len(mine))

    batch = collate(pad_blocks(lessons, 100))
    logits = model(classes[0])[batch["input_ids"]].clone().requires_grad_()
    taught = teacher(Told(model(classes[1])), theirs, ours, lessons, False)
    total, count = taught.loss(batch, logits)
    assert count > len(SAMPLES)
    assert total.item() == pytest.approx(0, abs=1e-4)
    total, _ = taught.loss(batch, table(300, 3)[batch["input_ids"]])
    assert total.item() > count * 0.1, "another model of bytes costs as little: the loss says nothing"


def test_across_tokenizers_it_is_the_kl_of_next_bytes_at_common_ends() -> None:
    ours, theirs = make_tokenizer(300), make_tokenizer(340)
    assert not same_tokenizer(ours, theirs, SAMPLES, "auto")
    mine = read_lessons(SAMPLES, ours, 0, "auto", placed=True)
    its = read_lessons(SAMPLES, theirs, 0, "auto", placed=True)
    student, source = table(300, 0), table(340, 1)
    blocks = pack_blocks(mine, 1000)
    batch = collate(blocks)
    total, count = teacher(Told(source), theirs, ours, mine, False).loss(batch, student[batch["input_ids"]])
    classes = common_classes(byte_classes(ours, 300), byte_classes(theirs, 340))
    assert set(classes[0].tolist()) == set(classes[1].tolist())
    expected, pairs = 0.0, 0
    for a, b in zip(mine, its, strict=True):
        for end in a.ends.keys() & b.ends.keys():
            p = torch.zeros(CLASSES).index_add(0, classes[1], source[b.ids[b.ends[end]]].softmax(0))
            q = torch.zeros(CLASSES).index_add(0, classes[0], student[a.ids[a.ends[end]]].softmax(0))
            seen = p > 0
            expected += float((p[seen] * (p[seen].log() - q[seen].log())).sum())
            pairs += 1
    assert count == pairs > 10
    assert total.item() == pytest.approx(expected, rel=1e-3)
