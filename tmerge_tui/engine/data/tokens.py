"""The beginning of a text as a tokenizer reads it, without reading the rest; and the words of a text of any script."""

from __future__ import annotations

from typing import Any

import regex

CHARACTERS = 16  # of a text taken at first for every token wanted; doubled while they give too few tokens
MARGIN = 64  # tokens behind those wanted: a cut changes only the last of them

# Scripts whose words stand side by side: a character of Chinese or Japanese is a word here, and of the others what
# belongs to one letter (its vowels and tones). Everything else between white space is one word.
_IDEOGRAPHS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}"
_CLUSTERS = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}"
_LETTER = regex.compile(rf"[{_IDEOGRAPHS}{_CLUSTERS}]")
_WORD = regex.compile(rf"(?=[{_IDEOGRAPHS}{_CLUSTERS}])\X|[^\s{_IDEOGRAPHS}{_CLUSTERS}]+")


def words(text: str) -> list[tuple[int, int]]:
    """(first, last + 1) of the words of a text: stretches without white space, and in scripts that write none between
    words their letters, each with its marks. The same for every model."""
    return [match.span() for match in _WORD.finditer(text)]


def is_spaceless(text: str) -> bool:
    """Whether most words of a text are single letters of a script that writes none between words."""
    found = words(text)
    return 2 * sum(_LETTER.match(text, first) is not None for first, _ in found) > len(found) > 0


def read_head(text: str, tokenizer: Any, count: int, **options: Any) -> tuple[str, Any]:
    """(the beginning of `text`, what the tokenizer makes of it), with more than `count` tokens where the text has more.

    The first `count` tokens are those of the whole text, which is not read when it is much longer. `options` are the
    tokenizer's.
    """
    size = CHARACTERS * (count + MARGIN)
    while True:
        head = text[:size]
        found = tokenizer(head, verbose=False, **options)
        if len(head) == len(text) or len(found["input_ids"]) >= count + MARGIN:
            return head, found
        size *= 4
