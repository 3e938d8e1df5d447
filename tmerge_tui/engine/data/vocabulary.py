"""What every token of a tokenizer spells in bytes, and which bytes of a text each token ends at.

Byte-level vocabularies (GPT-2, Llama 3, Qwen) write every byte as one stand-in character; SentencePiece ones (Llama 2,
Gemma) write a space as U+2581 and have <0x0A> for bytes without a token; others spell what they are. Special tokens and
rows of the head that no token has (padding to a round size) spell nothing.

A tokenizer that lower-cases, strips accents or otherwise normalises reads other bytes than the text has. That is not
judged by its settings but by the texts: the tokens of a text must spell the text (`token_ends`). The one exception is
the space that SentencePiece puts before a text, or before what follows a special token: it is taken off, and the
boundary before it is none, because what the model says there is about that space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tmerge_tui.errors import DataError, ModelError

SPACE = "\u2581"  # SentencePiece's
NO_BOUNDARY = -1

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Vocabulary:
    """The rows of a model's head."""

    name: str  # for messages
    spelled: tuple[bytes | None, ...]  # of every row; None: a special token, or a row without a token
    special: dict[int, bytes]  # special tokens and how a chat template writes them
    end: int | None  # end of text, one of `special`
    normalizer: str  # its kind as the tokenizer names it, "" without one

    @property
    def rows(self) -> int:
        return len(self.spelled)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Rows that spell something, by their bytes; equal ones by their number."""
        rows = (row for row, spelled in enumerate(self.spelled) if spelled is not None)
        return tuple(sorted(rows, key=lambda row: (self.spelled[row], row)))

    @cached_property
    def ordered(self) -> tuple[bytes, ...]:
        """What the rows of `order` spell."""
        return tuple(spelled for row in self.order if (spelled := self.spelled[row]) is not None)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest one."""
        return max(map(len, self.ordered), default=0)

    @cached_property
    def blank(self) -> npt.NDArray[np.bool_]:
        """[rows]: spells spaces and tabs alone."""
        return np.array([spelled is not None and not spelled.strip(b" \t") for spelled in self.spelled])


def read_vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """`rows` is what the head has: more than tokens, or fewer where the model has no use for the last of them.

    Raises ModelError for a tokenizer whose tokens do not say what bytes they are (WordPiece, suffixes).
    """
    inner = tokenizer.backend_tokenizer
    kinds = list(_kinds(_state(inner.decoder)))
    unknown = sorted({"WordPiece", "BPEDecoder", "CTC"} & set(kinds))
    if unknown:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} is of a kind ({unknown[0]}) whose tokens are not bytes of text",
            "a byte-level or SentencePiece tokenizer",
            "choose another pair, or leave out compare: distill and adaptation.teacher",
        )
    byte_level, fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
    added = tokenizer.added_tokens_decoder
    special = {row for row, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    spelled: list[bytes | None] = [None] * rows
    literal: dict[int, bytes] = {}
    for token, row in tokenizer.get_vocab().items():
        if row >= rows:
            continue  # Gemma 3 has tokens for images that its text models have no row for
        if row in special:
            literal[row] = token.encode()
        elif byte_level:
            spelled[row] = token.encode() if row in added else _from_stand_ins(token)
        else:
            spelled[row] = _from_sentencepiece(token, fallback)
    spelled = [each or None for each in spelled]  # what spells nothing is never read
    end = tokenizer.eos_token_id
    normalizer = "+".join(_kinds(_state(inner.normalizer)))
    return Vocabulary(tokenizer.name_or_path, tuple(spelled), literal, end if end in literal else None, normalizer)


def token_ends(vocabulary: Vocabulary, ids: Sequence[int], text: bytes, cut: bool = False) -> Ints:
    """int32 [len(ids)]: how many bytes of `text` have been read after each token, NO_BOUNDARY where the model is not
    asked about what follows: before a space of SentencePiece's own, and after an end-of-text token behind the text.

    Special tokens that the text writes out (chat templates) are bytes of it, others (begin of text) are none. With
    `cut`, tokens may stop before the text does. Raises DataError when the tokens do not spell the text.
    """
    ends = [NO_BOUNDARY] * len(ids)
    at = 0
    for start, stop in _sections(vocabulary, ids):
        token = ids[start]
        if token in vocabulary.special:
            written = text.startswith(vocabulary.special[token], at)
            at += len(vocabulary.special[token]) if written else 0
            ends[start] = at if written or at == 0 else NO_BOUNDARY
            continue
        pieces = [vocabulary.spelled[each] or b"" for each in ids[start:stop]]
        joined = b"".join(pieces)
        if not text.startswith(joined, at):
            if not (joined.startswith(b" ") and text.startswith(joined[1:], at)):
                raise _other_bytes(vocabulary, joined, text[at:])
            pieces[0] = pieces[0][1:]
            if start:
                ends[start - 1] = NO_BOUNDARY
        for position, piece in enumerate(pieces, start):
            at += len(piece)
            ends[position] = at
    if at < len(text) and not cut:
        raise _other_bytes(vocabulary, b"", text[at:])
    return np.array(ends, np.int32)


def _sections(vocabulary: Vocabulary, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[start, stop) of each special token and of all tokens between two of them."""
    start = 0
    for position, token in enumerate(ids):
        if token in vocabulary.special:
            if position > start:
                yield start, position
            yield position, position + 1
            start = position + 1
    if start < len(ids):
        yield start, len(ids)


def _other_bytes(vocabulary: Vocabulary, found: bytes, text: bytes) -> DataError:
    same = next((i for i, (a, b) in enumerate(zip(found, text, strict=False)) if a != b), min(len(found), len(text)))
    around = slice(max(0, same - 20), same + 20)
    shown = [part[around].decode(errors="replace") for part in (found, text)]
    why = f"; its normaliser is {vocabulary.normalizer}" if vocabulary.normalizer else ""
    return DataError(
        f"the tokenizer of {vocabulary.name} reads {shown[0]!r} where the text is {shown[1]!r}{why}",
        "tokens that spell the text byte by byte",
        "leave out compare: distill and adaptation.teacher, or normalise the text as the tokenizer does",
    )


def _state(part: Any) -> dict[str, Any]:
    """A part of a fast tokenizer as its file has it."""
    return {} if part is None else json.loads(part.__getstate__())


def _kinds(state: dict[str, Any]) -> Iterator[str]:
    """The types in a part of a tokenizer, sequences taken apart."""
    members = [*state.get("decoders", ()), *state.get("normalizers", ())]
    if members:
        for member in members:
            yield from _kinds(member)
    elif "type" in state:
        yield state["type"]


def _from_stand_ins(token: str) -> bytes:
    stand_ins = _STAND_INS
    if all(char in stand_ins for char in token):
        return bytes(stand_ins[char] for char in token)
    return token.encode()


def _from_sentencepiece(token: str, fallback: bool) -> bytes:
    if fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


def _stand_ins() -> dict[str, int]:
    """Of byte-level vocabularies: a byte that prints is itself, the others follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_STAND_INS = _stand_ins()
