"""Rows two models agree on. References: tokenizers whose pieces are known, and a dense averaging matrix."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import LINES, make_tokenizer
from tmerge_tui.engine.activations.pooling import WHOLE, Average, encode, plan_rows
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.errors import DataError


class Pieces:
    """A tokenizer that cuts a text at the given places; `special` tokens of no characters come first."""

    name_or_path, chat_template = "pieces", None

    def __init__(self, *cuts: int, special: int = 0) -> None:
        self.cuts, self.special = cuts, special

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        edges = [0, *self.cuts, len(text)]
        offsets = [(0, 0)] * self.special + list(pairwise(edges))
        return {"input_ids": list(range(len(offsets))), "offset_mapping": offsets}


def spans(text: str, tokenizer: Any, max_length: int = 64) -> dict[str, tuple[int, ...]]:
    (one,) = encode([Sample(text=text)], tokenizer, max_length, "span", "auto")
    return {text[first:last]: tokens for (_, first, last), tokens in one.tokens.items()}


def test_two_tokenizers_give_the_same_rows() -> None:
    tokenizers = [make_tokenizer(320), make_tokenizer(400)]
    samples = [Sample(text=line) for line in LINES[:6]]
    assert tokenizers[0](LINES[0])["input_ids"] != tokenizers[1](LINES[0])["input_ids"]
    rows = plan_rows(samples, tokenizers, 64, "span", "auto")
    assert rows.count == sum(len(line.split()) for line in LINES[:6])
    assert [LINES[0][a:b] for _, a, b in rows.words[0]] == LINES[0].split()


def test_a_word_cut_in_either_model_is_a_row_of_neither() -> None:
    short, long = make_tokenizer(400), make_tokenizer(280)  # few merges: more tokens for the same text
    samples = [Sample(text=LINES[0])]
    alone = [plan_rows(samples, [t], 10, "span", "auto").words[0] for t in (short, long)]
    both = plan_rows(samples, [short, long], 10, "span", "auto").words[0]
    assert len(alone[1]) < len(alone[0]) < len(LINES[0].split())
    assert both == alone[1]
    for tokenizer, words in ((short, alone[0]), (long, alone[1])):
        (one,) = encode(samples, tokenizer, 10, "span", "auto")
        assert max(max(one.tokens[w]) for w in words) < len(one.ids) == 10


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        ((2, 5), {"ab": (0,), "cd": (1,), "ef": (2,)}),  # ab| cd| ef
        ((3, 6), {"ab": (0,), "cd": (1,), "ef": (2,)}),  # "ab |cd |ef": spaces after
        ((2, 3, 5, 6), {"ab": (0,), "cd": (2,), "ef": (4,)}),  # tokens of white space alone belong to no word
        ((5,), {"ab": (0,), "ef": (1,)}),  # "ab cd" is one token: a tie goes to the first, and cd has no row
        ((1, 5), {"ab": (0,), "cd": (1,), "ef": (2,)}),  # "b cd" has more of cd
        ((1,), {"ab": (0,), "cd": (1,)}),  # "b cd ef": cd and ef tie, the first has it
    ],
)
def test_a_token_belongs_to_the_word_it_shares_most_with(cuts: tuple[int, ...], expected: dict[str, Any]) -> None:
    assert spans("ab cd ef", Pieces(*cuts)) == expected
    shifted = {word: tuple(t + 2 for t in tokens) for word, tokens in expected.items()}
    assert spans("ab cd ef", Pieces(*cuts, special=2)) == shifted


def test_a_word_whose_last_token_was_cut_is_dropped() -> None:
    assert spans("ab cd ef", Pieces(2, 5, 7), max_length=3) == {"ab": (0,), "cd": (1,)}
    assert spans("ab cd ef", Pieces(2, 5, 7), max_length=4)["ef"] == (2, 3)


def test_bytes_of_one_character_belong_to_its_word() -> None:
    found = spans("ก ab", make_tokenizer())  # three bytes, three tokens of the same offset
    assert found["ก"] == (0, 1, 2)
    assert "ก" not in spans("ก ab", make_tokenizer(), max_length=2)


def test_sample_pooling_takes_every_token_and_only_samples_both_models_read() -> None:
    texts = [Sample(text=t) for t in ("one", "two words", "three")]

    class Silent(Pieces):
        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            return {"input_ids": [] if text == "one" else [5, 6]}

    rows = plan_rows(texts, [make_tokenizer(), Silent()], 64, "sample", "auto")
    assert rows.words == ((), (WHOLE,), (WHOLE,)) and rows.count == 2
    (one,) = encode(texts[1:2], make_tokenizer(), 3, "sample", "auto")
    assert one.tokens[WHOLE] == (0, 1, 2) and len(one.ids) == 3
    with pytest.raises(DataError, match="gives 1 rows"):
        plan_rows(texts[:2], [make_tokenizer(), Silent()], 64, "sample", "auto")


CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}"
TALK = Sample(messages=({"role": "user", "content": "\n user or who "}, {"role": "assistant", "content": "user"}))


@pytest.mark.parametrize("template", [CHAT, CHAT.replace(" | trim", ""), None])
def test_words_of_messages_are_found_in_each_models_own_rendering(template: str | None) -> None:
    tokenizer, plain = make_tokenizer(), make_tokenizer(400)
    tokenizer.chat_template = template
    rows = plan_rows([TALK], [tokenizer, plain], 64, "span", "auto")
    assert TALK.messages is not None
    contents = [m["content"] for m in TALK.messages]
    assert [contents[i][a:b] for i, a, b in rows.words[0]] == ["user", "or", "who", "user"]
    for model in (tokenizer, plain):
        (one,) = encode([TALK], model, 64, "span", "auto")
        for (part, first, last), tokens in one.tokens.items():
            shown = model.decode([one.ids[t] for t in tokens])
            assert contents[part][first:last] in shown and len(shown) <= last - first + 2
        placed = [t for tokens in one.tokens.values() for t in tokens]
        assert placed == sorted(placed)


def test_span_pooling_says_when_words_cannot_be_placed() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT.replace("trim", "upper")
    with pytest.raises(DataError, match="rewrites what messages say") as caught:
        encode([TALK], tokenizer, 64, "span", "auto")
    assert "pooling: sample" in caught.value.hint
    assert encode([TALK], tokenizer, 64, "sample", "auto")[0].ids
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(DataError, match="rewrites what messages say"):
        encode([TALK], tokenizer, 64, "span", "auto")


def test_a_templates_own_special_tokens_are_not_doubled() -> None:
    tokenizer = make_tokenizer()
    seen: list[bool] = []

    class Spy:
        name_or_path = "spy"
        chat_template = tokenizer.chat_template = CHAT
        apply_chat_template = staticmethod(tokenizer.apply_chat_template)

        def __call__(self, text: str, *, add_special_tokens: bool, **rest: Any) -> Any:
            seen.append(add_special_tokens)
            return tokenizer(text, **rest)

    encode([TALK, Sample(text="a")], Spy(), 64, "sample", "auto")
    assert seen == [False, True]


def test_average_never_reads_other_tokens() -> None:
    activations = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 6.0]])
    assert (Average.of([[0, 2], [2]], torch.device("cpu")) @ activations).tolist() == [[2.0, 4.0], [3.0, 6.0]]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True), min_size=1, max_size=6), st.booleans()
)
def test_average_is_a_product_with_the_averaging_matrix(rows: list[list[int]], half: bool) -> None:
    activations = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    activations = activations.bfloat16() if half else activations
    dense = torch.zeros(len(rows), 12, dtype=torch.float64)
    for i, row in enumerate(rows):
        dense[i, row] = 1 / len(row)
    found = Average.of(rows, torch.device("cpu")) @ activations
    torch.testing.assert_close(found, (dense @ activations.double()).float(), atol=1e-6, rtol=1e-6)
