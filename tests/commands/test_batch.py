"""The last lines of a run on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tui.fakes import write_run
from tmerge_tui.commands.batch import Options, conclude
from tmerge_tui.errors import WorkerError
from tmerge_tui.events import RunFailed, RunFinished
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.follow import Ended

DONE = RunFinished("Fusion helped.", 1.0, "model", "report.html")
FAILED = RunFailed("DataError", "no such task", "a task", "see the list", 1)


def test_a_finished_run_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert conclude(run, Ended(DONE), Options()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["Fusion helped.", "model   model", "report  report.html"]
    assert lines[3].startswith("next    Confirm it") and lines[4] == "          --set seed=1 --set fusion.alpha=0.05"
    assert any(line.endswith("--set 'adaptation.compare=[sft,distill]'") for line in lines)
    assert conclude(run, Ended(DONE), Options(json=True)) == 0
    assert capsys.readouterr().out == ""


def test_a_failure_does_not_take_the_earlier_result_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    for ended in (Ended(FAILED), Ended(None, WorkerError("gone", "", ""))):
        assert conclude(run, ended, Options()) == 1
        assert f"the result of the earlier run is kept: {run.path / 'report.html'}" in capsys.readouterr().err
    fresh = RunDir.create(tmp_path / "fresh")
    assert conclude(fresh, Ended(FAILED), Options()) == 1
    assert "earlier" not in capsys.readouterr().err
