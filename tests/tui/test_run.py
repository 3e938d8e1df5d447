"""The run screen: replay, live, cancel, kill -9, resume, detach."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.pilot import Pilot

from tests.tui import doubles
from tests.tui.doubles import screen_text, settle
from tests.tui.fakes import SIDES, L, M, write_run
from tmerge_tui.events import Event, RunFailed, RunStarted, TrainingStep, Validated, encode
from tmerge_tui.recipe import dump_recipe, make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.home import Home
from tmerge_tui.tui.screens.result import ResultScreen
from tmerge_tui.tui.screens.run import RunScreen
from tmerge_tui.tui.widgets.matrix import Matrix
from tmerge_tui.tui.widgets.rail import Rail
from tmerge_tui.worker import follow, lock

MAPS = {"Layer costs", "Transport plan", "Sinkhorn"}


@pytest.fixture
def slow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    """A run whose fake pipeline takes its time; what is left of its worker is killed after the test."""
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.tui.fakes:play")
    monkeypatch.setenv("TMERGE_FAKE_PAUSE", "0.05")
    run = RunDir.create(tmp_path / "slow")
    recipe = {"source": "a/b", "target": "c/d", "calibration": {"path": "t.txt"}, "output": str(run.path)}
    run.recipe.write_text(dump_recipe(make_recipe(recipe)))
    yield run
    follow.cancel(run)


def more_events(run: RunDir, *events: Event) -> None:
    """As a worker adds them."""
    count = len(run.events.read_text().splitlines())
    with open(run.events, "a") as file:
        file.writelines(encode(event, count + n, 2e9 + n) + "\n" for n, event in enumerate(events))


async def until(pilot: Pilot, phase: str) -> RunScreen:
    """The run screen in `phase`, and drawn."""

    def drawn() -> bool:
        screen = pilot.app.screen
        if not isinstance(screen, RunScreen) or screen.phase != phase or screen._phase != phase:
            return False
        return screen.follower.ended is None or not doubles.follows(pilot)

    await doubles.until(pilot, drawn)
    await pilot.pause()
    screen = pilot.app.screen
    assert isinstance(screen, RunScreen)
    return screen


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
async def test_a_recorded_run_is_replayed(app: TmergeApp, tmp_path: Path, size: tuple[int, int]) -> None:
    run = write_run(tmp_path / "done")
    async with app.run_test(size=size) as pilot:
        app.show_run(run.path)
        screen = await until(pilot, "finished")
        assert screen.state.pairs == L * M * len(SIDES)
        text = screen_text(app)
        assert "✓ finished" in text and "Fusion does not beat its placebos" in text and "100%" in text
        assert "See the result" in text and "! 1 warning" in text
        costs = screen.query_one("#costs", Matrix)
        assert (costs.row_count, costs.column_count) == (L, M)
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, ResultScreen)


@pytest.mark.parametrize("size", [(80, 24), (100, 40), (120, 30), (160, 50)])
async def test_the_result_is_a_key_away_at_every_size_and_on_every_view(
    app: TmergeApp, tmp_path: Path, size: tuple[int, int]
) -> None:
    run = write_run(tmp_path / "done")
    async with app.run_test(size=size) as pilot:
        for view in "123":
            app.show_run(run.path)
            await until(pilot, "finished")
            await pilot.press(view)
            await pilot.pause()
            assert "v Result" in screen_text(app).splitlines()[-1]
            await pilot.press("v")
            await settle(pilot)
            assert isinstance(app.screen, ResultScreen)
        app.show_run(run.path)
        await until(pilot, "finished")
        app.screen.query_one(Rail).post_message(Rail.Chosen("result"))
        await settle(pilot)
        assert isinstance(app.screen, ResultScreen), "a click on its step leads there too"


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
async def test_the_loss_is_a_curve_while_it_trains(app: TmergeApp, tmp_path: Path, size: tuple[int, int]) -> None:
    run = write_run(tmp_path / "training", until="transport")
    steps = [TrainingStep("sft", 0, 4, 8, 9.0, 1e-6, 900.0)]
    steps += [TrainingStep("adapted", 1, n, 8, 3.0 - n / 4, 1e-6, 900.0) for n in range(1, 5)]
    more_events(run, *steps)
    follower = follow.Follower(run, worker=SimpleNamespace(pid=0, returncode=None))
    async with app.run_test(size=size) as pilot:
        app.push_screen(RunScreen(run.path, follower))
        await until(pilot, "running")
        await pilot.press("2")
        await pilot.pause()
        text = screen_text(app)
        assert "fused, adapted, seed 1: loss 2.0000 at step 4 of 8" in text
        assert "2.7500" in text and "9.0000" not in text, "the losses of two methods are not of one kind"
        assert "Training" in text and "Sinkhorn" not in text, "the solver is done"
        assert "validation" not in text
        told = [Validated("sft", 0, 4, 9.5), *(Validated("adapted", 1, n, 2.2 + (n - 3) ** 2 / 8) for n in range(5))]
        more_events(run, *told, TrainingStep("adapted", 1, 5, 8, 1.5, 1e-6, 900.0))
        tall = "validation 2.3250 bits per byte, lowest 2.2000"
        await doubles.wait_for(pilot, tall if size[1] == 50 else "at step 5 of 8, validation 2.3250")


async def test_the_log_has_scores_warnings_and_the_death_of_the_worker(app: TmergeApp, tmp_path: Path) -> None:
    run = write_run(tmp_path / "dead", until="report")
    async with app.run_test(size=(100, 30)) as pilot:
        app.show_run(run.path)
        await until(pilot, "crashed")
        await pilot.press("3")
        await pilot.pause()
        text = screen_text(app)
        assert "● fused alpha 0.1: 2.1702 bits/byte  (-0.0004 to the target, 95 %" in text
        assert "✗ the worker process is gone during the stage 'Write the report'" in " ".join(text.split())
        assert any(level == "warning" for _, level, _ in app.screen.state.log)


async def test_a_later_failure_leaves_the_result_where_it_was(app: TmergeApp, tmp_path: Path) -> None:
    run = write_run(tmp_path / "done")
    more_events(run, RunStarted(str(run.path), 1, "cpu", {}, []), RunFailed("DataError", "no such task", "", "", 1))
    async with app.run_test(size=(100, 30)) as pilot:
        app.show_run(run.path)
        await until(pilot, "failed")
        text = screen_text(app)
        assert "no such task" in text and "The result of the earlier run is kept." in text and "See the result" in text
        await pilot.press("v")
        await settle(pilot)
        assert isinstance(app.screen, ResultScreen)
        assert "! a later attempt failed: no such task; l shows it" in screen_text(app)


async def test_the_views_of_a_narrow_terminal(app: TmergeApp, tmp_path: Path) -> None:
    run = write_run(tmp_path / "dead", until="transport")
    async with app.run_test(size=(80, 24)) as pilot:
        app.show_run(run.path)
        await until(pilot, "crashed")
        assert "Read activations of the source" in screen_text(app)
        await pilot.press("2")
        await pilot.pause()
        text = screen_text(app)
        assert "Layer costs" in text and "Transport plan" in text and "Sinkhorn" in text
        await pilot.press("3")
        await pilot.pause(0.3)
        assert "8 duplicate samples left out" in screen_text(app)


@pytest.mark.parametrize(
    ("size", "first", "second", "ended"),
    [
        ((80, 24), {"Stages", "Worker"}, MAPS, {"Stages"}),
        ((100, 40), {"Stages", "Worker"}, MAPS, {"Stages", "Worker"}),
        ((120, 30), {"Stages", "Worker", "Log"}, MAPS, {"Stages", "Worker", "Log"}),
        ((120, 36), "all", "all", {"Stages", "Worker", "Sinkhorn", "Log"}),
        ((120, 50), "all", "all", "all"),
    ],
)
async def test_what_has_no_room_is_a_key_away(app: TmergeApp, tmp_path: Path, size, first, second, ended) -> None:
    """Nothing is squeezed to a frame without content; an ended run gives the room of its maps to what it says."""
    everything = {"Stages", "Worker", "Layer costs", "Transport plan", "Sinkhorn", "Log"}

    def cards() -> set[str]:
        drawn = [card for card in app.screen.query(".card") if card.region.height and card.region.width]
        assert all(card.content_size.height >= 2 for card in drawn), screen_text(app)
        return {str(card.border_title) for card in drawn}

    live = write_run(tmp_path / "live", until="transport")
    follower = follow.Follower(live, worker=SimpleNamespace(pid=0, returncode=None))
    async with app.run_test(size=size) as pilot:
        app.push_screen(RunScreen(live.path, follower))
        await until(pilot, "running")
        assert cards() == (everything if first == "all" else first)
        await pilot.press("2")
        await pilot.pause()
        assert cards() == (everything if second == "all" else second)
        app.show_run(write_run(tmp_path / "done").path)
        await until(pilot, "finished")
        assert cards() == (everything if ended == "all" else ended)
        if second == MAPS:
            await pilot.press("2")
            await pilot.pause()
            assert cards() == MAPS, "they are a key away after the end too"


async def test_a_dead_worker_says_what_happened_and_resumes(app: TmergeApp, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.tui.fakes:play")
    run = write_run(tmp_path / "dead", until="transport")
    async with app.run_test(size=(120, 40)) as pilot:
        app.show_run(run.path)
        await until(pilot, "crashed")
        text = " ".join(screen_text(app).split())
        assert "during the stage 'Solve transport plans'" in text and "finished pieces are kept" in text
        assert "✗ Solve transport plans" in text
        await pilot.press("r")
        await until(pilot, "finished")


async def test_kill_9_is_seen_and_named(app: TmergeApp, slow_run: RunDir) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await app.launch(slow_run.path)
        await until(pilot, "running")
        holder = lock.holder(slow_run)
        assert holder is not None
        os.kill(holder.pid, signal.SIGKILL)
        await until(pilot, "crashed")
        assert "was killed by SIGKILL" in screen_text(app)
        assert app.attached is None


async def test_cancel_asks_once_and_stops(app: TmergeApp, slow_run: RunDir) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await app.launch(slow_run.path)
        await until(pilot, "running")
        await pilot.press("c")
        await pilot.pause()
        assert "Cancel the merge?" in screen_text(app)
        await pilot.press("shift+tab", "enter")
        await until(pilot, "interrupted")
        assert "resume goes on where it stopped" in " ".join(screen_text(app).split())
        assert lock.holder(slow_run) is None


async def test_leaving_the_screen_leaves_the_run_and_coming_back_shows_it_all(app, slow_run: RunDir) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await app.launch(slow_run.path)
        await until(pilot, "running")
        assert app.attached == slow_run.path
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, Home)
        assert app.attached is None
        assert follow.state_of(slow_run) == "running"
        seen = slow_run.events.read_text(encoding="utf-8").count("\n")
        app.show_run(slow_run.path)
        screen = await until(pilot, "running")
        for _ in range(300):  # the whole log is replayed, which a busy machine may need time for
            if screen.state.stages["check"].outcome in ("running", "done"):
                break
            await pilot.pause(0.05)
        assert seen > 1, "there was something to come back to"
        assert screen.state.stages["check"].outcome in ("running", "done")


async def test_quitting_asks_when_a_run_is_attached(app: TmergeApp, slow_run: RunDir) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await app.launch(slow_run.path)
        await until(pilot, "running")
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert "A merge is running" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert app.is_running
        await pilot.press("q")
        await pilot.pause()
        await pilot.press("shift+tab", "shift+tab", "enter")  # leave it running
        await pilot.pause(0.2)
    assert app.return_value == 0
    assert follow.state_of(slow_run) == "running"


async def test_resizing_during_a_run(app: TmergeApp, slow_run: RunDir) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        await app.launch(slow_run.path)
        await until(pilot, "running")
        for width, height in ((80, 24), (40, 10), (1, 1), (200, 60), (100, 30)):
            await pilot.resize_terminal(width, height)
            await pilot.pause(0.1)
            assert ("too small" in screen_text(app)) == ((width, height) == (40, 10))
        assert "running" in screen_text(app)
        assert follow.state_of(slow_run) == "running"


async def test_any_prefix_of_a_log_can_be_shown(app: TmergeApp, tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole").events.read_text().splitlines(keepends=True)
    async with app.run_test(size=(120, 40)) as pilot:
        for count in (0, 2, 150, len(whole) - 1):
            run = RunDir.create(tmp_path / f"prefix-{count}")
            run.events.write_text("".join(whole[:count]) + '{"v":1,"seq":9,"t')
            app.show_run(run.path)
            await until(pilot, "crashed")
            app.go_home()
            await pilot.pause()
