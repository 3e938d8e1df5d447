"""The transport stage on Ray. Reference: the same stage in this process, whose pieces must have the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.methods.transport_merge.clustered import KINDS, models
from tests.engine.methods.transport_merge.on_ray import only, pieces, recipe, solve
from tests.engine.pair import make_pair, recipe_of
from tests.test_imports import FILES, imports
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.transport_merge import feature_plans as stage
from tmerge_tui.engine.methods.transport_merge import ray_solver
from tmerge_tui.engine.methods.transport_merge.feature_plans import transport
from tmerge_tui.errors import ClusterError, MemoryShortage, NumericsError, TmergeError
from tmerge_tui.events import Event, HeatMap, PairSolved, StageFinished, StageProgressed, Warned
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport
from tmerge_tui.run_folder import RunDir


@pytest.mark.parametrize("solver", ["fast", "plain", "pot"])
def test_plans_are_those_of_one_process(joined: Any, tmp_path: Path, solver: str) -> None:
    here, there = RunDir.create(tmp_path / "here"), RunDir.create(tmp_path / "there")
    seen: list[Event] = []
    transport(models(), KINDS, Transport(solver=solver), here, seen.append)
    events = solve(there, recipe(solver=solver))
    assert pieces(there) == pieces(here)
    assert set(only(events, PairSolved)) == set(only(seen, PairSolved))
    assert {type(event) for event in seen} <= {type(event) for event in events}
    assert only(events, HeatMap)
    last = only(events, StageProgressed)[-1]
    assert (last.done, last.total) == (36, 36)
    assert not only(events, Warned)


def test_small_calls_of_the_solver_give_the_same_pieces(
    joined: Any, run: RunDir, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CALL", {"cpu": 1})  # a task for each pair of layers
    sent: list[int] = []
    wait = joined.wait
    monkeypatch.setattr(joined, "wait", lambda refs, **rest: sent.append(len(refs)) or wait(refs, **rest))
    solve(run, recipe())
    assert pieces(run) == expected
    assert len(sent) >= 36 / 2 and max(sent) == 2 * ray_solver.AHEAD  # two CPUs


def test_a_whole_run_is_that_of_one_process(joined: Any, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    run = RunDir.create(pair["output"])
    outcomes = []
    for where in ("local", "ray"):
        seen: list[Event] = []
        pipeline.run(recipe_of(pair, transport={"executor": where}), run, seen.append)
        solved = {event.stage: event.outcome for event in only(seen, StageFinished)}
        outcomes.append((pieces(run), (run.model / "model.safetensors").read_bytes(), solved["transport"]))
        for piece in run.state.glob("transport-*"):
            piece.unlink()
    assert outcomes[0] == outcomes[1]  # no name says where plans were solved, and "done" twice
    for name, content in outcomes[1][0].items():
        (run.state / name).write_bytes(content)
    away = recipe_of(pair, transport={"executor": "ray", "ray_address": "127.0.0.1:1"})
    plans = pipeline.reopen(away, run)  # to look at finished plans nobody is asked
    assert plans.result("q.out", 0, 0).solution.converged
    pipeline.run(away, run, lambda event: None)  # nor for going on behind them


def test_pieces_are_shared_and_a_finished_stage_asks_no_cluster(run: RunDir, expected: dict[str, bytes]) -> None:
    solve(run)
    events = solve(run, recipe(address="127.0.0.1:1"))
    assert only(events, StageFinished)[0].outcome == "cached"
    assert pieces(run) == expected


def test_sources_are_stored_once(joined: Any, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[int] = []
    put = joined.put
    monkeypatch.setattr(joined, "put", lambda array: stored.append(array.nbytes) or put(array))
    solve(run, recipe())
    assert len(stored) == 12 + 18  # target layers and sides, source layers and sides


def test_bad_activations_are_named(joined: Any, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = models().target, models().source
    source.tensors[2, "v.out"][5, 7] = torch.nan
    asked = recipe()
    solver = ray_solver.on_ray(asked, lambda event: None)
    with pytest.raises(NumericsError, match=r"source model, layer 2, v\.out"):
        transport(Pair(target=target, source=source), KINDS, asked.transport, run, lambda event: None, "cpu", solver)


def broken(error: BaseException) -> Callable[..., Any]:
    def fails(*args: Any) -> Any:
        raise error

    return fails


def dies(*args: Any) -> Any:
    os._exit(1)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("no such matrix"), ClusterError, r"layer \d: its task failed, ValueError: no such matrix"),
        (NumericsError("a plan is not finite"), NumericsError, "a plan is not finite"),
        (MemoryError("no room"), MemoryShortage, r"layer \d: a node .* ran out of memory \(no room\)"),
        (torch.OutOfMemoryError("GPU is full"), MemoryShortage, "GPU is full"),
    ],
)
def test_what_goes_wrong_in_a_task(
    joined: Any,
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[TmergeError],
    words: str,
) -> None:
    monkeypatch.setattr(ray_solver, "work", broken(error))
    with pytest.raises(kind, match=words) as failure:
        solve(run, recipe())
    assert type(failure.value) is kind
    assert not pieces(run)


def test_finished_pieces_outlive_a_failure(
    joined: Any, run: RunDir, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = ray_solver.work

    def fails_late(version: str, device: str, options: Transport, Zx: Any, *Zys: Any) -> Any:
        if Zx.shape[1] == 12:  # inner channels: all sides but the first
            raise RuntimeError("here it ends")
        return work(version, device, options, Zx, *Zys)

    with monkeypatch.context() as patch:
        patch.setattr(ray_solver, "work", fails_late)
        with pytest.raises(ClusterError, match="here it ends") as failure:
            solve(run, recipe())
    assert "executor: local" in failure.value.hint
    assert pieces(run) and len(pieces(run)) < 12
    solve(run)
    assert pieces(run) == expected


def test_a_lost_process_is_made_up_for(
    joined: Any, run: RunDir, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, mark = ray_solver.work, tmp_path / "died"

    def dies_once(*args: Any) -> Any:
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return work(*args)

    monkeypatch.setattr(ray_solver, "work", dies_once)
    solve(run, recipe())
    assert mark.exists() and pieces(run) == expected


def test_one_that_is_lost_at_every_attempt_is_an_error(
    joined: Any, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_solver, "work", dies)
    monkeypatch.setattr(ray_solver, "RETRIES", 0)
    with pytest.raises(ClusterError, match="lost in each of 1 attempts"):
        solve(run, recipe())


def test_ray_is_imported_in_one_file() -> None:
    found = {path.name for path in FILES if any(name.split(".")[0] == "ray" for name in imports(path))}
    assert found == {"ray_solver.py"}
    assert not [n for n in imports(Path(ray_solver.__file__), top_only=True) if n.split(".")[0] == "ray"]
