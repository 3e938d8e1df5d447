"""The wizard beside an engine that is still being unpacked: it can be used, and a start waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tui.doubles import screen_text, until, wait_for
from tmerge_tui import bundle
from tmerge_tui.errors import StorageError
from tmerge_tui.recipe import dump_recipe, make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.run import RunScreen
from tmerge_tui.worker import follow


class Unpacking:
    """An engine that is 43 % unpacked until `go` is set."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self.broken = False

    def is_ready(self) -> bool:
        return self.go.is_set() and not self.broken

    def unpack(self, progress: bundle.Progress = lambda done, total: None) -> Path:
        progress(43, 100)
        self.asked.set()
        self.go.wait()
        if self.broken:
            raise StorageError("no room for the engine in /cache", "700 MB, once", "free space")
        return Path("tmerge")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unpacking]:
    made = Unpacking()
    monkeypatch.setattr(bundle, "is_ready", made.is_ready)
    monkeypatch.setattr(bundle, "unpack", made.unpack)
    yield made
    made.go.set()


async def test_the_screen_is_usable_and_says_how_far_it_is(app: TmergeApp, engine: Unpacking) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, "unpacking the engine, once: 43%")
        await pilot.press("n")
        await until(pilot, lambda: "Models" in screen_text(app) and "43%" in screen_text(app))
        engine.go.set()
        await until(pilot, lambda: "unpacking" not in screen_text(app))


async def test_a_start_waits_for_the_engine(
    app: TmergeApp, engine: Unpacking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.tui.fakes:play")
    run = RunDir.create(tmp_path / "run")
    recipe = {"source": "a/b", "target": "c/d", "calibration": {"path": "t.txt"}, "output": str(run.path)}
    run.recipe.write_text(dump_recipe(make_recipe(recipe)))
    async with app.run_test(size=(80, 24)) as pilot:
        start = app.run_worker(app.launch(run.path))
        await until(pilot, engine.asked.is_set)
        await pilot.pause()
        assert app.started == [] and not isinstance(app.screen, RunScreen)
        engine.go.set()
        await start.wait()
        assert len(app.started) == 1
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
    follow.cancel(run)


async def test_an_engine_that_cannot_be_unpacked_is_said(app: TmergeApp, engine: Unpacking) -> None:
    engine.broken = True
    async with app.run_test(size=(160, 50)) as pilot:
        engine.go.set()
        await wait_for(pilot, "the engine is not unpacked")
        assert any("no room for the engine" in notice.message for notice in app._notifications)
        engine.broken = False  # room was made: the next start tries again
        assert await app.engine_ready()
        await until(pilot, lambda: "unpack" not in screen_text(app))
