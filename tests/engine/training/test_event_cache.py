"""Byte events in their file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.engine.training.event_rule import (
    Pair,
    one_position,
)
from tmerge_tui.engine.training.byte_events import teach
from tmerge_tui.engine.training.event_cache import from_tensors, to_tensors
from tmerge_tui.errors import DataError


def test_events_come_back_from_their_file(tmp_path: Any) -> None:
    case = Pair(True)
    texts = [
        *teach(case.said, case.pairings, case.space),
        *teach(case.said[:1], [one_position(b"no token")], case.space),
    ]
    save_file(to_tensors(texts, exact=True), tmp_path / "events.safetensors")
    back = from_tensors(load_file(tmp_path / "events.safetensors"))
    assert len(back) == len(texts) and len(back[-1].places) == 0
    for a, b in zip(texts, back, strict=True):
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
            assert np.array_equal(x, y) and x.dtype == y.dtype


def test_without_need_for_all_digits_the_file_is_small(tmp_path: Any) -> None:
    case = Pair(True)
    texts = teach(case.said, case.pairings, case.space)
    save_file(to_tensors(texts), tmp_path / "events.safetensors")
    positions = sum(len(text.places) for text in texts)
    assert (tmp_path / "events.safetensors").stat().st_size < 300 * positions
    back = from_tensors(load_file(tmp_path / "events.safetensors"))
    for a, b in zip(texts, back, strict=True):
        assert np.array_equal(a.ids, b.ids) and a.masses == pytest.approx(b.masses, rel=1e-3, abs=1e-7)
        sums = [m.sum() + r for m, r in zip(np.split(b.masses, b.offsets[1:-1]), b.rest, strict=True)]
        assert sums == pytest.approx([1] * len(sums), abs=1e-6)


def test_a_file_that_lost_a_part_is_named() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    tensors = to_tensors(texts)
    with pytest.raises(DataError, match="incomplete"):
        from_tensors(tensors | {"masses": tensors["masses"][:-1]})
