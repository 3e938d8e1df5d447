"""Teachers without the source's knowledge of the text, made from its events: a gain they share is regularisation.

The fourth, the untouched target as its own teacher, is `teach` in the space `EventSpace.same`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tmerge_tui.engine.training.byte_events import EVENTS, select
from tmerge_tui.engine.training.event_cache import Events, joined
from tmerge_tui.engine.training.event_space import EventSpace, Table
from tmerge_tui.errors import DataError


def of_other_texts(texts: Sequence[Events], seed: int) -> list[Events]:
    """What the source said at another text's positions, from its beginning, again and again where that is shorter.

    Raises DataError when fewer than two texts have positions.
    """
    told = [i for i, text in enumerate(texts) if len(text.places)]
    if len(told) < 2:
        raise DataError(
            f"{len(told)} text has positions at which the source says something",
            "two, to give one the events of the other",
            "give more text, or leave out the control other_text",
        )
    order = np.random.default_rng(seed).permutation(told)
    found = list(texts)
    for mine, other in zip(order, np.roll(order, 1), strict=True):
        n = len(texts[mine].places)
        lent = texts[other].take(np.arange(n) % len(texts[other].places))
        found[mine] = Events(texts[mine].places, lent.offsets, lent.ids, lent.masses, lent.rest)
    return found


def permuted(texts: Sequence[Events], seed: int) -> list[Events]:
    """Every position's masses in random order among its events; the rest keeps its own."""
    generator = np.random.default_rng(seed)
    found = []
    for text in texts:
        position = np.repeat(np.arange(len(text.places)), text.counts)
        order = np.lexsort((generator.random(len(position)), position))
        found.append(Events(text.places, text.offsets, text.ids, text.masses[order], text.rest))
    return found


def unigram(texts: Sequence[Events], space: EventSpace, events: int = EVENTS) -> list[Events]:
    """The same at every position: the mean of what the source said over all of them."""
    one = joined(texts)
    if not len(one.places):
        return list(texts)
    mean = np.zeros(space.rows + 1)
    ranks = space.rank.cpu().numpy()[one.ids]
    np.add.at(mean, ranks, one.masses)
    mean[-1] = one.rest.sum()
    every = torch.arange(space.rows)
    table = Table(None, None, every, space.ends.cpu())
    mass = torch.from_numpy(mean / mean.sum()).float()[None]
    chosen, masses = select(mass, table, min(events, int((mean[:-1] > 0).sum())))
    ids = space.row(chosen)[0].cpu().numpy().astype(np.int32)
    own, rest = masses[0, :-1].numpy(), masses[0, -1:].numpy()
    only = Events(np.zeros(1, np.int32), np.array([0, len(ids)], np.int32), ids, own, rest)
    found = []
    for text in texts:
        said = only.take(np.zeros(len(text.places), np.int64))
        found.append(Events(text.places, said.offsets, said.ids, said.masses, said.rest))
    return found
