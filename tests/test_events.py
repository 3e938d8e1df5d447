"""Events <-> JSON lines: what is written is read, and a later version's file does not stop an older reader."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmerge_tui.events import TYPES, VERSION, Event, HeatMap, PairSolved, Warned, decode, encode, pack_cells

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: st.integers(),
    float: NUMBERS,
    bool: st.booleans(),
    float | None: st.none() | NUMBERS,
    dict[str, str]: st.dictionaries(st.text(), st.text(), max_size=3),
    dict[str, Any]: st.dictionaries(st.text(), st.integers() | st.text(), max_size=3),
    list[dict[str, Any]]: st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=3),
    list[str]: st.lists(st.text(), max_size=3),
    list[float]: st.lists(NUMBERS),
    list[list[float]]: st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
}
EVENTS = st.sampled_from(sorted(TYPES)).flatmap(
    lambda name: st.builds(TYPES[name], **{k: VALUES[v] for k, v in get_type_hints(TYPES[name]).items()})
)


@given(event=EVENTS, seq=st.integers(0, 2**40), t=st.floats(0, 1e10))
def test_round_trip_on_one_line(event: Event, seq: int, t: float) -> None:
    text = encode(event, seq, t)
    assert "\n" not in text and "\r" not in text
    line = decode(text)
    assert line is not None
    assert (line.event, line.seq, line.t) == (event, seq, round(t, 4))
    assert json.loads(text)["v"] == VERSION


@given(event=EVENTS, cut=st.integers(1, 200))
def test_a_torn_line_is_none(event: Event, cut: int) -> None:
    text = encode(event, 1, 1.0)
    assert decode(text[: max(len(text) - cut, 0)]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_word_for_becomes_null(value: float) -> None:
    text = encode(PairSolved(0, 0, "q.out", value, 1, 0.0, 0.0, False, "fast"), 0, 0.0)
    assert json.loads(text)["cost"] is None and "NaN" not in text and "Infinity" not in text


def test_fields_and_types_of_later_versions_are_dropped() -> None:
    body = {"v": 2, "seq": 3, "t": 1.0, "type": "Warned", "where": "x", "message": "y", "colour": "red"}
    line = decode(json.dumps(body))
    assert line is not None and line.event == Warned("x", "y")
    assert decode(json.dumps({**body, "type": "Danced"})) is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "3", '"x"', '{"type":"Warned"}', '{"type":["Warned"]}', "\x00"]
)
def test_anything_else_is_none(text: str) -> None:
    assert decode(text) is None


def test_heat_map_cells_survive() -> None:
    cells = bytes(range(256))
    heat = HeatMap("Q", 0, 0, "q.out", 16, 16, 0.0, 1.0, pack_cells(cells))
    line = decode(encode(heat, 0, 0.0))
    assert line is not None and isinstance(line.event, HeatMap) and line.event.cells() == cells


def test_events_are_frozen_and_named() -> None:
    assert "RunStarted" in TYPES and "Event" not in TYPES
    with pytest.raises(dataclasses.FrozenInstanceError):
        Warned("a", "b").where = "c"  # type: ignore[misc]
