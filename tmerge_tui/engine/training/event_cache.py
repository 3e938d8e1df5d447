"""What the source said, kept without the source: a text's events, a batch's, and placebos made of them.

In a file 4 bytes an event and 12 a position; 6 an event for targets of more than 65,536 rows. The file does not say of
which pair they are: its name must.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tmerge_tui.errors import DataError

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Events:
    """Of one text: n positions, the j-th with events offsets[j] to offsets[j + 1], ascending in the target's order."""

    places: Ints  # [n]: the target's token that has just been read
    offsets: Ints  # [n + 1]
    ids: Ints  # rows of the target, which name the events
    masses: Floats  # of each, without those inside it
    rest: Floats  # [n]: what is in none; a position's masses and its rest sum to 1

    @property
    def counts(self) -> Ints:
        return np.diff(self.offsets)

    def at(self, places: npt.NDArray[Any]) -> Events:
        """Only at these tokens of the target."""
        return self.take(np.flatnonzero(np.isin(self.places, places)))

    def take(self, positions: npt.NDArray[Any]) -> Events:
        """These positions of it, in this order; they may repeat."""
        counts = self.counts[positions]
        offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts) + np.repeat(self.offsets[positions], counts)
        return Events(self.places[positions], offsets, self.ids[inside], self.masses[inside], self.rest[positions])


@dataclass(frozen=True)
class BatchEvents:
    """Events of a batch where they are in its blocks: N positions, K the most events of one."""

    rows: Tensor  # int64 [N]: which block
    columns: Tensor  # int64 [N]: the token of it that has just been read
    ids: Tensor  # int64 [N, K]: rows of the target; -1 behind a position's last
    masses: Tensor  # fp32 [N, K + 1]: of the events, 0 behind the last; of the rest

    def to(self, device: torch.device) -> BatchEvents:
        return BatchEvents(*(each.to(device, non_blocking=True) for each in vars(self).values()))


def collate_events(
    events: Sequence[Events] | Mapping[int, Events], parts: Sequence[Sequence[tuple[int, int]]], counted: Tensor
) -> BatchEvents:
    """The events of a batch of blocks.

    `parts` has, of every block, its texts and where the first token of each lies in it (negative: in the block
    before); counted [B, T] says at which tokens of which block what follows is learnt.
    """
    learnt = counted.cpu().numpy()
    texts, rows, columns = [], [], []
    for row, inside in enumerate(parts):
        for text, begin in inside:
            told = events[text]
            where = told.places + begin
            there = (where >= 0) & (where < learnt.shape[1])
            there[there] = learnt[row, where[there]]
            texts.append(told.take(np.flatnonzero(there)))
            columns.append(where[there])
            rows.append(np.full(int(there.sum()), row))
    one = joined(texts)
    n, width = len(one.places), int(one.counts.max(initial=0))
    at = np.repeat(np.arange(n), one.counts), np.arange(len(one.ids)) - np.repeat(one.offsets[:-1], one.counts)
    ids = np.full((n, width), -1, np.int64)
    masses = np.zeros((n, width + 1), np.float32)
    ids[at], masses[at], masses[:, -1] = one.ids, one.masses, one.rest
    placed = [np.concatenate([[], *each]).astype(np.int64) for each in (rows, columns)]
    return BatchEvents(*map(torch.from_numpy, (*placed, ids, masses)))


def joined(texts: Sequence[Events]) -> Events:
    """All positions one after the other."""
    if not texts:
        none, empty = np.zeros(0, np.int32), np.zeros(0, np.float32)
        return Events(none, np.zeros(1, np.int32), none, empty, empty)
    offsets = np.concatenate([[0], *(text.counts for text in texts)]).cumsum().astype(np.int32)
    return Events(
        np.concatenate([text.places for text in texts]),
        offsets,
        np.concatenate([text.ids for text in texts]),
        np.concatenate([text.masses for text in texts]),
        np.concatenate([text.rest for text in texts]),
    )


def to_tensors(texts: Sequence[Events], exact: bool = False) -> dict[str, Tensor]:
    """For one safetensors file; `from_tensors` gives the texts back, masses to 3 digits unless they are `exact`."""
    one = joined(texts)
    narrow = np.uint16 if one.ids.max(initial=0) < 1 << 16 else np.int32
    masses = one.masses if exact else one.masses.astype(np.float16)
    arrays = vars(one) | {"ids": one.ids.astype(narrow), "masses": masses}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return tensors | {"texts": torch.tensor([len(text.places) for text in texts], dtype=torch.int32)}


def from_tensors(tensors: Mapping[str, Tensor]) -> list[Events]:
    """Raises DataError when the arrays do not fit each other."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    arrays |= {"ids": arrays["ids"].astype(np.int32), "masses": arrays["masses"].astype(np.float32)}
    counts = arrays.pop("texts")
    one = Events(**arrays)
    fits = len(one.places) == len(one.rest) == len(one.offsets) - 1 == counts.sum()
    if not fits or not len(one.ids) == len(one.masses) == one.offsets[-1]:
        raise DataError("cached events are incomplete", "a file that was written whole", "delete it and run again")
    if tensors["masses"].dtype == torch.float16:
        one = _normalised(one)
    stops = counts.cumsum()
    return [one.take(np.arange(stop - count, stop)) for stop, count in zip(stops, counts, strict=True)]


def _normalised(one: Events) -> Events:
    """The same with masses and rest that sum to 1."""
    position = np.repeat(np.arange(len(one.rest)), one.counts)
    whole = np.bincount(position, one.masses, minlength=len(one.rest)) + one.rest
    masses, rest = one.masses / whole[position], one.rest / whole
    return Events(one.places, one.offsets, one.ids, masses.astype(np.float32), rest.astype(np.float32))
