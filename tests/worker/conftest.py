from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tmerge_tui.recipe import dump_recipe, make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import spawn
from tmerge_tui.worker.spawn import Handle

RECIPE = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = RunDir.create(tmp_path / "run")
    folder.recipe.write_text(dump_recipe(make_recipe({**RECIPE, "output": str(folder.path)})))
    return folder


@pytest.fixture
def start(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Handle]]:
    """Starts a worker with one of the fake pipelines; what is left of it is killed after the test."""
    started: list[Handle] = []

    def begin(name: str) -> Handle:
        monkeypatch.setenv("TMERGE_PIPELINE", f"tests.worker.fakes:{name}")
        started.append(spawn.start(run))
        return started[-1]

    yield begin
    for handle in started:
        with handle.process as process:
            process.kill()
