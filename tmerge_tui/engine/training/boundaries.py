"""Where two readings of one text can be compared: for token boundaries of the target, the source's last one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tmerge_tui.engine.data.vocabulary import Ints, Vocabulary

Span = tuple[int, int, int]  # first byte in the source's text, first byte in the target's, bytes: the same in both


@dataclass(frozen=True, eq=False)
class Pairing:
    """N positions of the target at which the source has something to say about what comes next."""

    ours: Ints  # [N]: the target's token that has just been read, ascending
    theirs: Ints  # [N]: the source's
    behind: tuple[bytes, ...]  # [N]: c, what the target has read beyond the source; b"" where both end a token


def pair(
    theirs: Ints,  # the source's `token_ends`
    ours: Ints,  # the target's
    text: bytes,  # as the target reads it
    every: bool = False,  # also where the source is inside a token
    spans: Sequence[Span] | None = None,  # what both read, where templates differ; None: all of it
) -> Pairing:
    """Of several tokens that end at one byte the last counts; the target's very last token has nothing behind it."""
    found: list[tuple[int, int, bytes]] = []
    their_ends, their_places = _last_at(theirs)
    our_ends, our_places = _last_at(ours[:-1])
    for source_start, target_start, length in [(0, 0, len(text))] if spans is None else spans:
        shift = source_start - target_start
        chosen = (our_ends >= target_start) & (our_ends <= target_start + length)
        for end, place in zip(our_ends[chosen].tolist(), our_places[chosen].tolist(), strict=True):
            at = int(np.searchsorted(their_ends, end + shift, side="right")) - 1
            if at < 0 or their_ends[at] < source_start:
                continue
            behind = text[int(their_ends[at]) - shift : end]
            if every or not behind:
                found.append((place, int(their_places[at]), behind))
    columns = zip(*found, strict=True) if found else ((), (), ())
    places, others, behinds = columns
    return Pairing(np.array(places, np.int32), np.array(others, np.int32), tuple(behinds))


def without_blanks(pairing: Pairing, vocabulary: Vocabulary, ids: Sequence[int]) -> Pairing:
    """Not where the target's next token is spaces and tabs alone: for code, whose indentation the source would write
    with other tokens. `vocabulary` and `ids` are the target's."""
    kept = np.flatnonzero(~vocabulary.blank[np.asarray(ids, np.int64)[pairing.ours + 1]])
    return Pairing(pairing.ours[kept], pairing.theirs[kept], tuple(pairing.behind[i] for i in kept))


def _last_at(ends: Ints) -> tuple[Ints, Ints]:
    """(distinct ends, ascending; the last token at each)."""
    places = np.flatnonzero(ends >= 0)
    distinct, back = np.unique(ends[places][::-1], return_index=True)
    return distinct, (places[::-1][back]).astype(np.int32)
