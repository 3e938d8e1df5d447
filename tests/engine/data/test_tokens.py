"""The beginning of a long text, and words of scripts with and without spaces."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.models.test_tokenizer import metaspace
from tests.tiny import LINES, make_tokenizer
from tmerge_tui.engine.activations.pooling import encode, plan_rows
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.data.tokens import MARGIN, read_head, words
from tmerge_tui.engine.evaluation import bits_per_byte
from tmerge_tui.engine.training.examples import read_examples

LONG = " ".join(LINES) * 40 + " end"


def unigram() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("make", [make_tokenizer, metaspace, unigram])
@pytest.mark.parametrize("text", [LONG, "口" * 9_000, " " * 9_000 + LONG, "a" * 9_000, "短い", ""])
def test_the_beginning_is_that_of_the_whole_text(make: Any, text: str) -> None:
    tokenizer = make()
    for count in (8, 64):
        head, found = read_head(text, tokenizer, count, add_special_tokens=False, return_offsets_mapping=True)
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert found["input_ids"][:count] == whole["input_ids"][:count]
        assert found["offset_mapping"][:count] == whole["offset_mapping"][:count]
        assert text.startswith(head) and (head == text or len(found["input_ids"]) >= count + MARGIN)


class Spy:
    """Counts the characters that a tokenizer is given."""

    def __init__(self) -> None:
        self.inner, self.read = make_tokenizer(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.read += len(text)
        return self.inner(text, **options)


@pytest.mark.parametrize("pooling", ["sample", "span"])
def test_of_a_long_document_only_the_beginning_is_read(pooling: str) -> None:
    document = Sample(text=LONG * 20)
    spy, plain = Spy(), make_tokenizer()
    (one,) = encode([document], spy, 64, pooling, "auto")
    (example,) = read_examples([document], spy, 64, "auto", placed=True)
    scored = bits_per_byte.text_of(document.plain, spy, 64)
    assert spy.read < 0.1 * 3 * len(document.plain)
    assert one.ids == example.ids[1:] + one.ids[63:] == tuple(plain(LONG)["input_ids"][:64]) and len(scored.ids) == 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two rivers, met", ["two", "rivers,", "met"]),
        ("香港嘅茶。", ["香", "港", "嘅", "茶", "。"]),
        ("東京のソラ and more", ["東", "京", "の", "ソ", "ラ", "and", "more"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),  # vowels and tones stay with their letter
        ("ສະບາຍດີ", ["ສ", "ະ", "ບ", "າ", "ຍ", "ດີ"]),
        ("ភាសា", ["ភា", "សា"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("서울 강", ["서울", "강"]),
        ("नमस्ते", ["नमस्ते"]),
        (" \n", []),
    ],
)
def test_words_of_any_script(text: str, expected: list[str]) -> None:
    found = [text[first:last] for first, last in words(text)]
    assert "".join(found) == "".join(text.split())
    if not any(
        "\u0e80" <= c <= "\u109f" for c in text
    ):  # what belongs to one letter there depends on Unicode's version
        assert found == expected
    assert len(found) >= len(expected) - 2


@pytest.mark.parametrize("line", ["สวัสดีชาวโลก" * 30, "香港嘅茶好飲" * 40, "ជំរាបសួរ" * 30, "東京の空は青い" * 30])
def test_a_line_without_spaces_gives_rows(line: str) -> None:
    samples = [Sample(text=line), Sample(text=f"x {line}")]
    rows = plan_rows(samples, [make_tokenizer(320), make_tokenizer(400)], 64, "span", "auto")
    assert all(len(found) > 8 for found in rows.words)


def test_a_training_sample_without_tokens_teaches_nothing() -> None:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)  # no begin or end of text
    found = read_examples([Sample(text="\u200b"), Sample(text="ab")], tokenizer, 0, "auto", placed=True)
    assert [example.ids for example in found] == [(), (0, 1)]
