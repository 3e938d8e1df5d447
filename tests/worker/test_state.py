"""Events -> RunState. Any prefix and any order of events is reducible; replaying gives the same state."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tmerge_tui.commands.render import screen
from tmerge_tui.events import (
    TYPES,
    Event,
    LayerPlanSolved,
    Line,
    PairSolved,
    ResourceSample,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StageFinished,
    StageProgressed,
    StageStarted,
    Warned,
    decode,
    encode,
)
from tmerge_tui.worker.state import LOG, RunState

STAGES = [{"name": "a", "label": "A", "weight": 0.25}, {"name": "b", "label": "B", "weight": 0.75}]
START = RunStarted("run", 1, "cpu", {}, STAGES)


def reduce(*timed: tuple[float, Event]) -> RunState:
    state = RunState()
    for n, (t, event) in enumerate(timed):
        state.apply(Line(n, t, event))
    return state


def _values(kind: Any) -> st.SearchStrategy[Any]:
    words = st.sampled_from(["a", "b", "other", "", "done", "cached", "qkv.in"])
    simple = {
        str: words,
        int: st.integers(0, 50),
        float: st.floats(),  # NaN and Inf as well: the file turns them into null
        bool: st.booleans(),
        float | None: st.none() | st.floats(),
    }
    if kind in simple:
        return simple[kind]
    text = str(kind)
    if "stage" in text or text.startswith("list[dict"):
        return st.sampled_from([STAGES, [], [{}], [{"name": "b"}]])
    if text.startswith("list[list"):
        return st.just([[0.5, 0.5]])
    return st.just([0.1, 0.01]) if text.startswith("list") else st.just({})


EVENTS = st.sampled_from(sorted(TYPES)).flatmap(
    lambda name: st.builds(TYPES[name], **{k: _values(v) for k, v in get_type_hints(TYPES[name]).items()})
)


@settings(max_examples=60, deadline=None)
@given(events=st.lists(EVENTS, max_size=25))
def test_any_events_in_any_order_reduce_and_paint(events: list[Event]) -> None:
    state, again = RunState(), RunState()
    for n, event in enumerate(events):
        line = decode(encode(event, n, 1e9 + n))
        assert line is not None and type(line.event) is type(event)
        state.apply(line)
        assert 0.0 <= state.fraction <= 1.0
        eta = state.eta(1e9 + n)
        assert eta is None or eta >= 0
        again.apply(line)
    assert state == again
    for side in state.costs:
        assert len({len(row) for row in state.cost_matrix(side)}) == 1
    Console(width=80, file=io.StringIO()).print(screen(state, 1e9, 80))


def test_every_event_type_is_covered_by_the_strategy() -> None:
    assert {c.__name__ for c in Event.__subclasses__()} == set(TYPES)
    assert all(dataclasses.fields(c) for c in TYPES.values())


def test_fractions_are_weighted() -> None:
    state = reduce((0, START), (0, StageStarted("a", "A", 10, "x")), (5, StageProgressed("a", 5, 10, "x", 1.0)))
    assert state.fraction == pytest.approx(0.125)
    assert state.stages["a"].eta() == pytest.approx(5.0)
    assert state.current == "a" and state.stages["b"].outcome == "waiting"
    # a takes 10 s for a quarter of the work; the other three quarters go at that pace: 5 + 30 s
    assert state.eta(5) == pytest.approx(5 + 30)


def test_cached_stages_count_as_work_but_not_as_pace() -> None:
    state = reduce(
        (0, START), (0, StageStarted("a", "A", 10, "x")), (0, StageFinished("a", 0.01, "cached")),
        (0, StageStarted("b", "B", 10, "x")), (10, StageProgressed("b", 5, 10, "x", 0.5)),
    )  # fmt: skip
    assert state.fraction == pytest.approx(0.25 + 0.375)
    assert state.eta(10) == pytest.approx(10.0)
    assert state.stages["a"].outcome == "cached"


def test_a_stage_may_come_again() -> None:
    state = reduce(
        (0, START), (0, StageStarted("b", "B", 1, "x")), (1, StageFinished("b", 1.0, "done")),
        (2, StageStarted("b", "B again", 4, "y")),
    )  # fmt: skip
    assert state.stages["b"].label == "B again" and state.stages["b"].weight == 0.75
    assert state.stages["b"].fraction == 0.0 and list(state.stages) == ["a", "b"]


def test_a_new_start_forgets_the_earlier_run() -> None:
    state = reduce((0, START), (0, Warned("x", "old")), (1, RunFailed("E", "m", "", "", 1)), (9, START))
    assert state == reduce((9, START)) and state.phase == "running" and not state.warnings


@pytest.mark.parametrize("end", [RunFailed("E", "m", "", "", 1), RunInterrupted("SIGTERM")])
def test_the_running_stage_takes_the_end(end: Event) -> None:
    state = reduce((0, START), (1, StageStarted("a", "A", 10, "x")), (4, end))
    assert state.stages["a"].outcome == state.phase
    assert state.stages["a"].elapsed(99) == 3.0 and state.elapsed(99) == 4.0 and state.eta(99) is None


def test_finished_is_all_of_it() -> None:
    state = reduce((0, START), (7, RunFinished("helped", 7.0, "model", "report")))
    assert state.fraction == 1.0 and state.finished is not None and state.elapsed(100) == 7.0


def test_pairs_fill_the_cost_matrix_of_their_side() -> None:
    def pair(l: int, m: int, cost: float, converged: bool = True) -> PairSolved:
        return PairSolved(l, m, "q.out", cost, 9, 1e-7, 1e-9, converged, "fast")

    state = reduce((0, START), (1, pair(0, 2, 0.5)), (1, pair(1, 0, 0.7, False)), (2, LayerPlanSolved("q", [[1.0]])))
    assert state.cost_matrix("q.out") == [[None, None, 0.5], [0.7, None, None]]
    assert state.cost_matrix("k.out") == []
    assert (state.pairs, state.unconverged) == (2, 1) and state.plans == {"q": [[1.0]]}


def test_peaks_and_log_tail() -> None:
    samples = [(n, ResourceSample(1.0, rss, 100, gpu_used=rss // 2)) for n, rss in enumerate((10, 80, 20))]
    state = reduce((0, START), *samples, *[(3, Warned("w", str(n))) for n in range(LOG + 5)])
    assert (state.peak_rss, state.peak_gpu) == (80, 40) and state.resources is not None and state.resources.rss == 20
    assert len(state.log) == LOG and state.log[-1] == (3, "warning", f"w: {LOG + 4}") and len(state.warnings) == LOG + 5
