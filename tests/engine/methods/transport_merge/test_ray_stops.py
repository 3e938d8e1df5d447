"""A run on a Ray cluster of its own that is stopped and killed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.engine.methods.transport_merge.on_ray import pieces, recipe
from tests.waiting import PATIENCE, until
from tmerge_tui.engine.methods.transport_merge import ray_solver
from tmerge_tui.events import RunInterrupted
from tmerge_tui.recipe import dump_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import spawn
from tmerge_tui.worker.follow import Follower

AGENTS = ("DashboardAgent", "RuntimeEnvAgent")  # of Ray; they leave by themselves, up to half a minute later


@pytest.fixture
def swept() -> Iterator[None]:
    """Removes the logs of clusters whose process was killed, which cannot do it."""
    place = Path(ray_solver.SHORT or tempfile.gettempdir())
    before = set(place.glob("tmerge-ray-*"))
    yield
    for folder in set(place.glob("tmerge-ray-*")) - before:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_stopped_and_a_killed_run_go_on(
    run: RunDir, expected: dict[str, bytes], swept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real worker that starts a cluster of its own: stopped, started again, killed, and finished without Ray."""
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.engine.methods.transport_merge.clustered:align")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    run.recipe.write_text(dump_recipe(recipe()))
    done = 0
    for signal_, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
        worker = spawn.start(run)
        try:
            until(lambda already=done: len(pieces(run)) > already)
            theirs = psutil.Process(worker.pid).children(recursive=True)
            assert any("raylet" in process.name() for process in theirs)
            os.kill(worker.pid, signal_)
            assert worker.wait(PATIENCE) == code
        finally:
            with worker.process as process:
                process.kill()
        left = [process for process in theirs if signal_ == signal.SIGTERM or not agent(process)]
        until(lambda left=left: not any(runs(process) for process in left))
        done = len(pieces(run))
        assert 0 < done < 12
        lines = list(Follower(run).poll())
        assert isinstance(lines[-1].event, RunInterrupted) == (signal_ == signal.SIGTERM)
    run.recipe.write_text(dump_recipe(recipe(executor="local")))
    worker = spawn.start(run)
    assert worker.wait(PATIENCE) == 0
    assert pieces(run) == expected


def agent(process: psutil.Process) -> bool:
    try:
        return any(name in " ".join(process.cmdline()) for name in AGENTS)
    except psutil.NoSuchProcess:
        return False


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
