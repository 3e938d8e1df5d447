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
    Checked,
    Event,
    Line,
    Metric,
    PairSolved,
    ResourceSample,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StageFinished,
    StageProgressed,
    StageStarted,
    TrainingStep,
    Validated,
    Warned,
    decode,
    encode,
)
from tmerge_tui.worker.state import IGNORED, LOG, RunState

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
    assert set(Event.__subclasses__()) == set(TYPES.values())
    assert all(dataclasses.fields(c) for c in TYPES.values())


def _sample(kind: Any) -> Any:
    """A value of a field that differs from what a state holds before."""
    plain = {str: "a", int: 3, float: 0.5, bool: True, float | None: 0.5}
    if kind in plain:
        return plain[kind]
    text = str(kind)
    return STAGES if text.startswith("list[dict") else [] if text.startswith("list") else {}


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_event_is_seen_on_the_screen_or_is_ignored_on_purpose(name: str) -> None:
    """A new event type has to say which of the two it is."""
    event = TYPES[name](**{field: _sample(kind) for field, kind in get_type_hints(TYPES[name]).items()})
    before, after = reduce((0, START)), reduce((0, START), (0, event))
    assert (before != after) == (type(event) not in IGNORED and name != "RunStarted") or name == "RunStarted"
    assert name != "RunStarted" or reduce((0, event)) != RunState()


def test_a_training_becomes_a_curve_for_each_method_and_seed() -> None:
    def step(method: str, seed: int, at: int, loss: float | None) -> TrainingStep:
        return TrainingStep(method, seed, at, 4, loss, 1e-6, 900.0)  # type: ignore[arg-type]

    steps = [step("adapted", 0, 2, 2.5), step("adapted", 0, 4, 2.25), step("sft", 1, 2, 2.75), step("sft", 1, 4, None)]
    state = reduce((0, START), *[(n, event) for n, event in enumerate(steps)])
    assert state.trainings == {("adapted", 0): [(2.0, 2.5), (4.0, 2.25)], ("sft", 1): [(2.0, 2.75)]}
    assert state.training == steps[-1], "a loss that is not finite is no point of the curve, but it is told"


def test_a_training_that_goes_back_is_drawn_from_there() -> None:
    steps = [TrainingStep("sft", 0, at, 9, 5.0 - at / 10, 1e-6, 900.0) for at in (1, 2, 3, 4)]
    told = [Validated("sft", 0, 0, 3.0), Validated("sft", 0, 2, 2.0), Validated("sft", 0, 4, 2.5)]
    fall = [TrainingStep("sft", 0, 3, 9, 1.0, 1e-6, 900.0), Validated("sft", 0, 3, 1.5, "decayed")]
    state = reduce((0, START), *[(1, event) for event in (*steps, *told, *fall)])
    assert state.trainings["sft", 0] == [(1.0, 4.9), (2.0, 4.8), (3.0, 1.0)]
    assert state.validations["sft", 0] == [(0.0, 3.0), (2.0, 2.0), (3.0, 1.5)]


def test_scores_and_the_end_are_in_the_log() -> None:
    metric = Metric("bits_per_byte", "fused", 2.1702, "bits/byte", 0.1, -0.0004, -0.0008, 0.0001)
    state = reduce((0, START), (1, metric), (2, RunFailed("DataError", "no text", "", "", 1)))
    said = "fused alpha 0.1: 2.1702 bits/byte  (-0.0004 to the target, 95 % -0.0008 to +0.0001)"
    assert list(state.log) == [(1, "score", said), (2, "error", "DataError: no text")]


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

    state = reduce((0, START), (1, pair(0, 2, 0.5)), (1, pair(1, 0, 0.7, False)))
    assert state.cost_matrix("q.out") == [[None, None, 0.5], [0.7, None, None]]
    assert state.cost_matrix("k.out") == []
    assert (state.pairs, state.unconverged) == (2, 1)
    models = Checked({"layers": 4}, {"layers": 3}, ["q"], [])
    state = reduce((0, START), (0, models), (1, pair(0, 2, 0.5)))
    assert state.cost_matrix("q.out") == [[None, None, 0.5, None], [None] * 4, [None] * 4]


def test_peaks_and_log_tail() -> None:
    samples = [(n, ResourceSample(1.0, rss, 100, gpu_used=rss // 2)) for n, rss in enumerate((10, 80, 20))]
    state = reduce((0, START), *samples, *[(3, Warned("w", str(n))) for n in range(LOG + 5)])
    assert (state.peak_rss, state.peak_gpu) == (80, 40) and state.resources is not None and state.resources.rss == 20
    assert len(state.log) == LOG and state.log[-1] == (3, "warning", f"w: {LOG + 4}") and len(state.warnings) == LOG + 5
