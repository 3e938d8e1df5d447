"""Training text. References: the tokenizer's own words, blocks put together by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import make_tokenizer
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.training.examples import IGNORED, Example, collate, pack_blocks, pad_blocks, read_examples
from tmerge_tui.errors import DataError

TEMPLATE = "{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
CHAT = Sample(
    messages=(
        {"role": "user", "content": "two rivers"},
        {"role": "assistant", "content": "meet here"},
        {"role": "user", "content": "seven lamps"},
        {"role": "assistant", "content": "nine doors"},
    )
)


def example(*ids: int) -> Example:
    return Example(ids, (IGNORED, *ids[1:]), {})


def test_plain_text_begins_and_ends_and_its_first_token_is_no_label() -> None:
    tokenizer = make_tokenizer()
    (found,) = read_examples([Sample("two rivers meet")], tokenizer, 0, "auto")
    assert tokenizer.decode(found.ids) == "<|end|>two rivers meet<|end|>"
    assert found.labels == (IGNORED, *found.ids[1:])
    (cut,) = read_examples([Sample("two rivers meet")], tokenizer, 3, "auto")
    assert cut.ids == found.ids[:3]


def test_answers_alone_are_learnt_each_with_the_token_that_ends_it() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    (found,) = read_examples([CHAT], tokenizer, 0, "auto", answer_only=True)
    learnt = [label for label in found.labels if label != IGNORED]
    assert tokenizer.decode(learnt).replace(" ", "") == "meethere<|end|>ninedoors<|end|>"
    assert all(label in (IGNORED, token) for label, token in zip(found.labels, found.ids, strict=True))
    (all_of_it,) = read_examples([CHAT], tokenizer, 0, "auto")
    assert all_of_it.labels[1:] == all_of_it.ids[1:]


def test_text_without_answers_is_an_error() -> None:
    with pytest.raises(DataError, match="no answers"):
        read_examples([Sample("plain")], make_tokenizer(), 0, "auto", answer_only=True)


@given(st.lists(st.text(alphabet="abcé中 ", min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_word_has_the_tokens_that_spell_it(words: list[str]) -> None:
    text = " ".join(words)
    tokenizer = make_tokenizer(300)
    if not text.strip():
        return
    (found,) = read_examples([Sample(text)], tokenizer, 0, "auto", placed=True)
    assert found.words
    for (_, start, end), positions in found.words.items():
        assert text[start:end] in tokenizer.decode([found.ids[p] for p in positions])


def test_packing_cuts_one_stream_and_knows_where_samples_lie() -> None:
    examples = [example(1, 2, 3), example(4, 5, 6, 7), example(8, 9)]
    blocks = pack_blocks(examples, 4)
    assert [block.ids for block in blocks] == [(1, 2, 3, 4), (5, 6, 7, 8)]  # the last token has nothing before it
    assert [block.labels for block in blocks] == [(IGNORED, 2, 3, IGNORED), (IGNORED, 6, 7, IGNORED)]
    assert [block.parts for block in blocks] == [((0, 0), (1, 3)), ((1, -1), (2, 3))]
    for block in blocks:
        for sample, begin in block.parts:
            for i, token in enumerate(examples[sample].ids):
                if 0 <= begin + i < len(block.ids):
                    assert block.ids[begin + i] == token


def test_padding_gives_a_sample_a_row() -> None:
    blocks = pad_blocks([example(1, 2, 3), example(4), example(5, 6, 7, 8)], 3)
    assert [block.ids for block in blocks] == [(1, 2, 3), (5, 6, 7)]  # one token alone teaches nothing
    batch = collate([blocks[0], pad_blocks([example(9, 8)], 3)[0]])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 8, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED, 8, IGNORED]]
    assert batch["tokens"] == 5 and batch["parts"] == [[(0, 0)], [(0, 0)]]
