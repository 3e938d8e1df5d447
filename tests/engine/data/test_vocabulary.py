"""What tokens spell. Tokenizers of every kind are made here; what they spell is known by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import make_tokenizer
from tmerge_tui.engine.data.vocabulary import NO_BOUNDARY, read_vocabulary, token_ends
from tmerge_tui.engine.training.boundaries import pair, without_blanks
from tmerge_tui.errors import DataError, ModelError

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(dummy: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 2 has it: bytes as fallback, U+2581 for a space and one before every text."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *"\u2581abcdeorlw", "\u2581w", "or", "\u2581wor"]
    merges = [("\u2581", "w"), ("o", "r"), ("\u2581w", "or")]
    inner = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps: list[Any] = [normalizers.Prepend("\u2581")] if dummy else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def read(tokenizer: Any, text: str, bos: bool = False) -> Any:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return token_ends(read_vocabulary(tokenizer, len(tokenizer)), [tokenizer.bos_token_id] * bos + ids, text.encode())


@given(st.text())
def test_byte_level_tokens_spell_every_text(text: str) -> None:
    tokenizer = make_tokenizer(300)
    vocabulary = read_vocabulary(tokenizer, 320)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.bos_token_id in ids:
        return
    assert b"".join(vocabulary.spelled[i] or b"" for i in ids) == text.encode()
    assert token_ends(vocabulary, ids, text.encode()).tolist() == np.cumsum(
        [len(vocabulary.spelled[i] or b"") for i in ids]
    ).tolist()  # fmt: skip


def test_rows_without_a_token_and_special_tokens_spell_nothing() -> None:
    tokenizer = make_tokenizer(300)
    vocabulary = read_vocabulary(tokenizer, 320)
    assert vocabulary.rows == 320 and vocabulary.end == tokenizer.eos_token_id
    assert vocabulary.spelled[300:] == (None,) * 20 and vocabulary.spelled[tokenizer.eos_token_id] is None
    assert vocabulary.special == {tokenizer.eos_token_id: b"<|end|>"}
    assert len(vocabulary.order) == 299 and list(vocabulary.ordered) == sorted(vocabulary.ordered)
    assert len(read_vocabulary(tokenizer, 290).spelled) == 290, "tokens behind the head are never read"


def test_added_tokens_of_a_byte_level_tokenizer_spell_themselves() -> None:
    tokenizer = make_tokenizer(300)
    tokenizer.add_tokens([AddedToken("\u00a0x", normalized=False), AddedToken("  ", normalized=False)])
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.spelled[300:] == ("\u00a0x".encode(), b"  ")
    assert vocabulary.blank[301] and not vocabulary.blank[300] and not vocabulary.blank[tokenizer.eos_token_id]


def test_sentencepiece_tokens_spell_spaces_bytes_and_characters() -> None:
    tokenizer = sentencepiece()
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    at = tokenizer.get_vocab()
    assert vocabulary.spelled[at["<0x0A>"]] == b"\n" and vocabulary.spelled[at["\u2581wor"]] == b" wor"
    assert vocabulary.spelled[at["<unk>"]] is None and vocabulary.special[at["<s>"]] == b"<s>"


@pytest.mark.parametrize("text", ["world world", " world", "w", "é中 world", "  a"])
def test_the_space_before_a_text_is_taken_off(text: str) -> None:
    tokenizer = sentencepiece()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ends = read(tokenizer, text, bos=True)
    assert ends[-1] == len(text.encode()) and ends[0] == NO_BOUNDARY, "after <s> it says a space that is not there"
    spelled = [read_vocabulary(tokenizer, len(tokenizer)).spelled[i] or b"" for i in ids]
    assert b"".join(spelled) == b" " + text.encode()
    assert ends[1:].tolist() == [int(n) - 1 for n in np.cumsum([len(s) for s in spelled])]


def test_without_a_space_of_its_own_the_boundary_before_a_text_stays() -> None:
    assert read(sentencepiece(dummy=False), " world", bos=True).tolist() == [0, 4, 5, 6]


def test_characters_split_across_tokens_have_boundaries_inside_them() -> None:
    ends = read(make_tokenizer(257), "é中")
    assert ends.tolist() == [1, 2, 3, 4, 5]


def test_special_tokens_count_where_the_text_writes_them() -> None:
    tokenizer = make_tokenizer(300)
    vocabulary, end = read_vocabulary(tokenizer, 300), tokenizer.eos_token_id
    a, b = tokenizer("a b", add_special_tokens=False).input_ids[:1], tokenizer("b", add_special_tokens=False).input_ids
    assert token_ends(vocabulary, [end, *a, end, *b, end], b"a<|end|>b").tolist() == [0, 1, 8, 9, NO_BOUNDARY]
    assert token_ends(vocabulary, [end, *a], b"a and more", cut=True).tolist() == [0, 1]
    with pytest.raises(DataError, match="and more"):
        token_ends(vocabulary, [end, *a], b"a and more")


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [
        (normalizers.Lowercase(), "the Word"),
        (normalizers.NFKC(), "the ﬁrst"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "naïve word"),
        (normalizers.Strip(), "word "),
    ],
    ids=["lower case", "NFKC", "accents", "strip"],
)
def test_a_tokenizer_that_changes_the_text_is_refused(normalizer: Any, text: str) -> None:
    tokenizer = make_tokenizer(300)
    tokenizer.backend_tokenizer.normalizer = normalizer
    assert read(tokenizer, "word").tolist()[-1] == 4, "what it leaves as it is can be read"
    with pytest.raises(DataError, match="byte by byte") as caught:
        read(tokenizer, text)
    assert type(normalizer).__name__ in str(caught.value) or "StripAccents" in str(caught.value)


def test_word_pieces_are_refused() -> None:
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]"), 3)


def test_positions_are_paired_by_bytes_with_begin_of_text_on_one_side() -> None:
    text = b"abcd"
    with_start = np.array([0, 1, 3, 4, NO_BOUNDARY], np.int32)
    without = np.array([2, 3, 4, NO_BOUNDARY], np.int32)
    both = pair(with_start, without, text)
    assert (both.ours.tolist(), both.theirs.tolist(), both.behind) == ([1, 2], [2, 3], (b"", b""))
    every = pair(with_start, without, text, every=True)
    assert (every.ours.tolist(), every.theirs.tolist(), every.behind) == ([0, 1, 2], [1, 2, 3], (b"b", b"", b""))
    assert pair(without, with_start, text, every=True).ours.tolist() == [2, 3], "before its first token it said nothing"


def test_of_tokens_that_end_at_one_byte_the_last_counts() -> None:
    ends = np.array([0, 0, 1, 1, 2, 2], np.int32)
    found = pair(ends, ends, b"ab")
    assert (found.ours.tolist(), found.theirs.tolist()) == ([1, 3, 4], [1, 3, 5]), "nothing follows the very last one"


def test_behind_templates_only_what_both_read_is_paired() -> None:
    ours, theirs = b"<user>ab</user>", b"[ab]"
    spelled_out = np.arange(1, len(ours) + 1, dtype=np.int32)
    other = np.arange(1, len(theirs) + 1, dtype=np.int32)
    found = pair(other, spelled_out, ours, spans=[(1, 6, 2)])
    assert (found.ours.tolist(), found.theirs.tolist()) == ([5, 6, 7], [0, 1, 2])


def test_positions_before_blanks_can_be_left_out() -> None:
    tokenizer = make_tokenizer(257)
    text = "a \tb"
    vocabulary, ids = read_vocabulary(tokenizer, 257), tokenizer(text).input_ids
    ends = token_ends(vocabulary, ids, text.encode())
    both = pair(ends, ends, text.encode())
    assert both.ours.tolist() == both.theirs.tolist() == [0, 1, 2] and both.behind == (b"",) * 3
    kept = without_blanks(both, vocabulary, ids)
    assert kept.ours.tolist() == kept.theirs.tolist() == [2] and kept.behind == (b"",)
