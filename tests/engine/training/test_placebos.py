"""Placebos of a teacher: the form of its events, without its knowledge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engine.training.event_rule import (
    REST,
    Pair,
    loss_of,
    named,
    one_position,
    vocabulary,
)
from tmerge_tui.engine.training.byte_events import teach
from tmerge_tui.engine.training.event_space import EventSpace
from tmerge_tui.engine.training.placebos import of_other_texts, permuted, unigram
from tmerge_tui.errors import DataError


def test_placebos_have_the_positions_and_sums_of_the_real_thing_and_not_its_knowledge() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    real = loss_of(case.logits, texts, case.space).item()
    for made in (of_other_texts(texts, 0), permuted(texts, 0), unigram(texts, case.space)):
        for a, b in zip(texts, made, strict=True):
            assert a.places.tolist() == b.places.tolist() and len(b.rest) == len(b.places) == len(b.offsets) - 1
            sums = [m.sum() + r for m, r in zip(np.split(b.masses, b.offsets[1:-1]), b.rest, strict=True)]
            assert sums == pytest.approx([1] * len(sums), abs=1e-5)
        assert loss_of(case.logits, made, case.space).item() != pytest.approx(real, rel=1e-3)


def test_another_texts_events_are_no_texts_own() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    for seed in range(5):
        lent = of_other_texts(texts, seed)
        starts = [tuple(text.masses[:64].tolist()) for text in texts]
        given_to = [starts.index(tuple(text.masses[:64].tolist())) for text in lent]
        assert sorted(given_to) == [0, 1, 2, 3] and all(i != j for i, j in enumerate(given_to))
    with pytest.raises(DataError, match="1 text"):
        of_other_texts(texts[:1], 0)


def test_permuted_masses_stay_at_their_position() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    mixed = permuted(texts, 0)
    for a, b in zip(texts, mixed, strict=True):
        assert (
            np.array_equal(a.ids, b.ids) and np.array_equal(a.rest, b.rest) and not np.array_equal(a.masses, b.masses)
        )
        for i in range(len(a.places)):
            part = slice(a.offsets[i], a.offsets[i + 1])
            assert sorted(a.masses[part]) == sorted(b.masses[part])


def test_the_unigram_is_the_mean_of_what_was_said() -> None:
    source = target = vocabulary(b"a", b"ab", b"c")
    space = EventSpace.between(source, target)
    said = torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]]]).log()
    texts = teach(said, [one_position()] * 2, space)
    for k, wanted in ((3, {b"a": 0.3, b"ab": 0.2, b"c": 0.5, REST: 0}), (2, {b"a": 0.5, b"c": 0.5, REST: 0})):
        for text in unigram(texts, space, k):
            assert named(text, 0, source, target) == pytest.approx(wanted, abs=1e-6)
