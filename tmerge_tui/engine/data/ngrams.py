"""Words in a row: what two texts share by copying."""

from __future__ import annotations

from collections.abc import Sequence


def ngrams(words: Sequence[str], n: int, behind: int = 0) -> set[tuple[str, ...]]:
    """All n in a row that end behind the first `behind` words; of a shorter text the whole of it."""
    if len(words) < n:
        return {tuple(words)}
    return {tuple(words[i : i + n]) for i in range(max(0, behind - n + 1), len(words) - n + 1)}
