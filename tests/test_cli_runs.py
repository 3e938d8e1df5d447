"""What the command line does with a run that is there: real processes, fake pipelines."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.command_line import inside, started, tmerge, wait_for
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.follow import EventFile, cancel, state_of


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    data = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "fusion": {"alpha": 0.1}}
    data["output"] = str(tmp_path / "run")
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    folder = RunDir(tmp_path / "run")
    yield folder
    cancel(folder)


def test_watch_and_cancel(recipe: Path, run: RunDir) -> None:
    assert tmerge("watch", run.path).returncode == 1  # no such run
    with started("--batch", recipe) as batch:
        wait_for(run, "StageStarted")
        busy = tmerge("--batch", recipe)
        assert busy.returncode == 1 and "in use" in busy.stderr and "tmerge watch" in busy.stderr
        with started("watch", run.path) as watching:
            assert watching.stderr is not None
            while "Solving transport" not in watching.stderr.readline():
                pass
            watching.send_signal(signal.SIGINT)
            _, err = watching.communicate()
        assert watching.returncode == 130 and "the run goes on" in err and state_of(run) == "running"
        stopped = tmerge("cancel", run.path)
        assert stopped.returncode == 0 and stopped.stdout.startswith("stopped")
        _, err = batch.communicate()
    assert batch.returncode == 130 and "continues" in err
    again = tmerge("cancel", run.path)
    assert again.returncode == 1 and "interrupted" in again.stderr
    assert tmerge("watch", run.path).returncode == 130


def test_watch_shows_the_last_start_of_a_finished_run(recipe: Path, run: RunDir) -> None:
    assert tmerge("--batch", recipe, "--quiet", fake="numerics").returncode == 1
    assert tmerge("--batch", recipe, "--quiet").returncode == 0
    seen = tmerge("watch", run.path, "--json")
    assert seen.returncode == 0
    names = [json.loads(line)["type"] for line in seen.stdout.splitlines()]
    assert names[0] == "RunStarted" and "RunFailed" not in names and names[-1] == "RunFinished"
    assert len(EventFile(run.events).read_new()) > len(names)


def test_what_fails_on_a_finished_run_leaves_it_as_it_was(recipe: Path, run: RunDir) -> None:
    assert tmerge("--batch", recipe).returncode == 0
    run.save_json(run.path / "report.json", {"verdict": {"headline": "it helped"}})
    before = run.recipe.read_bytes()
    done = tmerge("--batch", recipe, "--device", "cuda", fake="refused")
    assert done.returncode == 2 and f"the result in {run.path} is as it was" in done.stderr
    assert run.recipe.read_bytes() == before and state_of(run) == "finished"
    shown = tmerge("watch", run.path)
    assert shown.returncode == 0 and shown.stdout.startswith("seed 0, alpha 0.1\nmodel ")
    assert "note: a later attempt failed" in shown.stderr


def test_a_run_goes_on_with_resume_and_every_start_is_on_the_list(recipe: Path, run: RunDir, tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    assert tmerge("--batch", recipe, fake="numerics", **state).returncode == 1
    done = tmerge("resume", run.path, **state)
    assert done.returncode == 0 and done.stdout.startswith("seed 0, alpha 0.1\n")
    listed = tmerge("runs", **state)
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == 1 and str(run.path) in listed.stdout


def test_methods_are_compared_on_one_recipe(recipe: Path, run: RunDir) -> None:
    done = tmerge("compare", recipe, "--methods", "ot_fusion, ls_merge", "--set", "seed=3")
    assert done.returncode == 0 and done.stdout.startswith("seed 3, alpha 0.1\n")
    made = yaml.safe_load(run.recipe.read_text())
    assert made["compare_methods"] == ["ot_fusion", "ls_merge"] and made["method"] == "ot_fusion"


def test_report_needs_a_report(recipe: Path, run: RunDir) -> None:
    tmerge("--batch", recipe, "--quiet")
    missing = tmerge("report", run.path)
    assert missing.returncode == 1 and "no report.json" in missing.stderr
    (run.path / "report.json").write_text("{")
    broken = tmerge("report", run.path)
    assert broken.returncode == 1 and "not JSON" in broken.stderr


def test_report_is_written_again(
    run: RunDir, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.engine.report.sample_results import make_results

    results = make_results()
    RunDir.create(run.path)
    (run.path / "report.json").write_text(json.dumps(results))
    code, out, _ = inside(run.path, monkeypatch, capsys, "report", str(run.path))
    assert code == 0 and out.splitlines()[0] == results["verdict"]["headline"]
    assert (run.path / "report.html").exists()
