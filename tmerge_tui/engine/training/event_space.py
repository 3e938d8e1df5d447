"""What two vocabularies can be compared in: the events "the next bytes start with w", w a token of the target.

The target's rows lie in one order: tokens by their bytes, end of text, other special tokens, rows without a token. In
it everything that starts with w is one range [rank, end), and ranges nest or are disjoint. Special tokens are one
event and end of text its own where both vocabularies have one; a range again.

A source that has read the bytes c beyond its last token boundary says next one of its tokens that start with c and are
longer. What such a token leaves behind c goes to the longest token of the target that it starts with (`Table`); where
there is none, the target cannot say it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tmerge_tui.engine.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Table:
    """Source tokens behind c -> events. R tokens, C events."""

    tokens: Tensor | None  # int64 [R], rows of the source's head; None: all of them
    slots: Tensor | None  # int64 [R], the event of each, C where it has none; None: each token is the event of its row
    ranks: Tensor  # int64 [C], ascending
    ends: Tensor  # int64 [C]: the first event outside the range of each, as an index into `ranks`

    def to(self, device: torch.device) -> Table:
        tokens, slots = (each if each is None else each.to(device) for each in (self.tokens, self.slots))
        return Table(tokens, slots, self.ranks.to(device), self.ends.to(device))


@dataclass
class EventSpace:
    """Of one pair; see `between` and `same`. V rows of the target's head."""

    order: Tensor | None  # int64 [V]: target rows by rank; None: rank and row are the same
    rank: Tensor  # int64 [V]: of every row
    ends: Tensor  # int64 [V]: by rank, the end of its range
    source_rows: int  # of the source's head
    source: Vocabulary | None  # None: the same tokenizer
    target: Vocabulary | None
    _first: dict[bytes, int] = field(default_factory=dict)  # bytes of a target token -> its lowest rank
    _tables: dict[tuple[bytes, str], Table] = field(default_factory=dict)

    @classmethod
    def between(cls, source: Vocabulary, target: Vocabulary) -> EventSpace:
        """For other tokenizers."""
        both_end = source.end is not None and target.end is not None
        last = [target.end] if both_end and target.end is not None else []
        special = [row for row in sorted(target.special) if row not in last]
        order = [*target.order, *last, *special]
        placed = set(order)
        order += [row for row in range(target.rows) if row not in placed]
        ends = _range_ends(target.ordered)
        texts = len(ends)
        ends += [texts + len(last)] * len(last) + [texts + len(last) + len(special)] * len(special)
        ends += range(len(ends) + 1, target.rows + 1)
        rank = np.empty(target.rows, np.int64)
        rank[order] = np.arange(target.rows)
        first: dict[bytes, int] = {}
        for i, spelled in enumerate(target.ordered):
            first.setdefault(spelled, i)
        return cls(torch.tensor(order), torch.from_numpy(rank), torch.tensor(ends), source.rows, source, target, first)

    @classmethod
    def same(cls, source_rows: int, target_rows: int) -> EventSpace:
        """For one tokenizer: every row that both heads have is an event, none is in another, c is always empty."""
        common = min(source_rows, target_rows)
        rows = torch.arange(target_rows)
        space = cls(None, rows, rows + 1, source_rows, None, None)
        space._tables[b"", "cpu"] = Table(None, None, rows[:common], rows[:common] + 1)
        return space

    @property
    def rows(self) -> int:
        return len(self.rank)

    def ranges(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[lo, hi) of events given as rows of the target, empty behind the last rank where they are negative."""
        rank, ends = self.rank.to(ids.device), self.ends.to(ids.device)
        lo = rank[ids.clamp_min(0)]
        hi = ends[lo]
        absent = ids < 0
        return lo.masked_fill(absent, self.rows), hi.masked_fill(absent, self.rows)

    def row(self, rank: Tensor) -> Tensor:
        """The target's rows at these ranks."""
        return rank if self.order is None else self.order.to(rank.device)[rank]

    def to(self, device: torch.device) -> EventSpace:
        """The same with what a training step reads on `device`."""
        order = None if self.order is None else self.order.to(device)
        return replace(self, order=order, rank=self.rank.to(device), ends=self.ends.to(device))

    def table(self, behind: bytes, device: torch.device) -> Table:
        """For c = `behind`, kept for the next time; without events when no token of the source is longer than c."""
        key = behind, str(device)
        if key not in self._tables:
            made = self._tables.get((behind, "cpu")) or self._table(behind)
            self._tables[behind, "cpu"] = made
            self._tables[key] = made.to(device)
        return self._tables[key]

    def _table(self, behind: bytes) -> Table:
        assert self.source is not None and self.target is not None, "with one tokenizer every boundary is shared"
        source = self.source
        start = bisect_right(source.ordered, behind)
        stop = bisect_left(source.ordered, behind + b"\xff" * (1 + source.longest))
        skip = len(behind)
        events = [self._longest(spelled[skip:]) for spelled in source.ordered[start:stop]]
        tokens = list(source.order[start:stop])
        if not behind:  # the source may also say a special token, or give mass to rows without a token
            tokens += sorted(source.special)
            events += [self._special(row) for row in sorted(source.special)]
            missing = set(range(source.rows)) - set(tokens)
            tokens += missing
            events += [-1] * len(missing)
        found = np.array(events, np.int64)
        ranks = np.unique(found[found >= 0])
        slots = np.where(found >= 0, np.searchsorted(ranks, found), len(ranks))
        ends = np.searchsorted(ranks, self.ends.cpu().numpy()[ranks])
        if behind:
            return Table(torch.tensor(tokens), *map(torch.from_numpy, (slots, ranks, ends)))
        by_row = np.empty(source.rows, np.int64)
        by_row[tokens] = slots
        return Table(None, *map(torch.from_numpy, (by_row, ranks, ends)))

    def _longest(self, remainder: bytes) -> int:
        """The rank of the longest token of the target that `remainder` starts with; -1 when there is none."""
        assert self.target is not None
        for length in range(min(len(remainder), self.target.longest), 0, -1):
            found = self._first.get(remainder[:length])
            if found is not None:
                return found
        return -1

    def _special(self, row: int) -> int:
        """The rank of the event that a special token of the source is; -1 when the target has none."""
        assert self.source is not None and self.target is not None
        texts = len(self.target.order)
        both_end = self.source.end is not None and self.target.end is not None
        if both_end and row == self.source.end:
            return texts
        return texts + both_end if len(self.target.special) > both_end else -1


def _range_ends(ordered: Sequence[bytes]) -> list[int]:
    """For sorted byte strings: the first index behind each that does not start with it."""
    ends = [0] * len(ordered)
    open_: list[int] = []
    for i, spelled in enumerate(ordered):
        while open_ and not spelled.startswith(ordered[open_[-1]]):
            ends[open_.pop()] = i
        open_.append(i)
    for i in open_:
        ends[i] = len(ordered)
    return ends
