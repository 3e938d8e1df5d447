"""runs, compare, presets, init, resume and completion: what the command line offers around a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from tests.tui.fakes import write_run
from tmerge_tui import cli
from tmerge_tui.events import RunFailed, encode
from tmerge_tui.recipe import make_recipe, parse_recipe
from tmerge_tui.recipe.presets import preset_names
from tmerge_tui.recipe.starts import STARTS, Start
from tmerge_tui.worker import run_index
from tmerge_tui.worker.follow import later_attempt, state_of
from tmerge_tui.worker.summary import summary


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def tmerge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["tmerge", *given])
    code = cli.main()
    return code, *capsys.readouterr()


def test_runs_lists_what_was_made_here(tmp_path: Path, monkeypatch, capsys) -> None:
    assert tmerge(monkeypatch, capsys, "runs") == (0, "", "no run on this machine yet: tmerge demo makes one\n")
    for name in ("one", "two"):
        run_index.remember(write_run(tmp_path / name).path)
    run_index.remember(write_run(tmp_path / "dead", until="transport").path)
    run_index.forget(tmp_path / "one")
    _, out, _ = tmerge(monkeypatch, capsys, "runs")
    first, second = out.splitlines()
    assert first.startswith("crashed") and first.endswith(str(tmp_path / "dead"))
    assert "helped -0.0011" in second and "source-llama → target-qwen2" in second
    _, out, _ = tmerge(monkeypatch, capsys, "runs", "helped", "--json")
    (found,) = json.loads(out)
    assert found["path"] == str(tmp_path / "two") and found["verdict"] == "helped" and found["difference"] < 0


def test_compare_shows_what_differs(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("one", "two"):
        run = write_run(tmp_path / name)
        epsilon = {"one": "0.2", "two": "0.3"}[name]
        run.recipe.write_text(run.recipe.read_text().replace("epsilon: 0.1", f"epsilon: {epsilon}"))
    code, out, _ = tmerge(monkeypatch, capsys, "compare", "one", "two")
    differing = out.partition("Settings that differ\n")[2].splitlines()
    assert code == 0 and "fused at alpha 0.05" in out and "2.1706" in out
    assert [line.split() for line in differing] == [["transport.epsilon", "0.2", "0.3"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("one",), "two runs, or one recipe and --methods"),
        (("one", "two", "--quiet"), "these options go with --methods"),
        (("one", "two", "--methods", "ot_fusion,ls_merge"), "tries methods on one recipe"),
        (("r.yaml", "--methods", "ot_fusion"), "expected two or more"),
        (("r.yaml", "--methods", "ot_fusion,ot_fission"), "compare_methods"),
        (("none.yaml", "--methods", "ot_fusion,ls_merge"), "none.yaml"),
    ],
)
def test_compare_says_what_it_takes(tmp_path: Path, monkeypatch, capsys, given: tuple[str, ...], said: str) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name)
    Path("r.yaml").write_text("{source: a/b, target: c/d, calibration: {path: t.txt}, output: out}")
    code, _, err = tmerge(monkeypatch, capsys, "compare", *given)
    assert code == 2 and said in err and not Path("out").exists()


def test_a_later_attempt_is_a_note_on_a_finished_run(tmp_path: Path, monkeypatch, capsys) -> None:
    run = write_run(tmp_path / "done")
    with open(run.events, "a") as file:
        file.write(encode(RunFailed("DataError", "piqa cannot be loaded", "", "", 1), 999, 1.0) + "\n")
    assert state_of(run) == "finished" and later_attempt(run) == "a later attempt failed: piqa cannot be loaded"
    code, out, err = tmerge(monkeypatch, capsys, "watch", "done")
    assert code == 0 and out.startswith("Fusion does not beat its placebos\nmodel ")
    assert "note: a later attempt failed: piqa cannot be loaded" in err and "error:" not in err


def test_a_run_that_chose_its_model_is_listed_with_that_models_difference(tmp_path: Path) -> None:
    """Reference: the row of the chosen model in the report, not that of the fused one."""
    run = write_run(tmp_path / "done")
    results = json.loads((run.path / "report.json").read_text())
    rows = [{"model": "adapted_distilled", "alpha": None, "difference": -0.1062}]
    chosen = {"model": "adapted_distilled", "alpha": None, "texts": 200, "rows": []}
    run.save_json(run.path / "report.json", {**results, "selection": chosen, "adaptation": {"rows": rows}})
    found = summary(run.path, 0.0)
    assert found.difference == -0.1062 and found.headline == results["verdict"]["headline"]
    run.save_json(run.path / "report.json", {**results, "selection": {**chosen, "model": "target"}})
    assert summary(run.path, 0.0).difference is None


def test_presets_are_listed_and_shown(monkeypatch, capsys) -> None:
    code, out, _ = tmerge(monkeypatch, capsys, "presets")
    assert code == 0 and all(name in out for name in preset_names()) and "mesolitica/Malaysian-SFT" in out
    code, out, _ = tmerge(monkeypatch, capsys, "presets", "malay")
    assert code == 0 and parse_recipe(out).adaptation is not None
    code, _, err = tmerge(monkeypatch, capsys, "presets", "malya")
    assert code == 2 and "did you mean malay?" in err


def test_plan_prints_the_recipe_of_a_preset_before_its_problems(monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "nothing-here")
    code, out, err = tmerge(monkeypatch, capsys, "plan", "preset:malay", "--offline")
    assert code == 2 and parse_recipe(out).target.model.startswith("mesolitica/") and "source" in err


def test_init_writes_a_commented_recipe(tmp_path: Path, monkeypatch, capsys) -> None:
    code, out, _ = tmerge(monkeypatch, capsys, "init", "org/big", "org/small", "org/verses", "--output", "out")
    made = parse_recipe(out)
    assert code == 0 and made.calibration.repo_id == "org/verses" and made.source.model == "org/big"
    assert made.select == "validation" and made.adaptation is not None and made.adaptation.tuned
    assert out.startswith("# Best small model: ") and "# fusion strength in [0, 1]" in out
    code, out, err = tmerge(monkeypatch, capsys, "init", "org/big", "org/small", "text.txt", "--to", "r.yaml")
    assert code == 0 and out == "" and parse_recipe(Path("r.yaml").read_text()).calibration.path is not None
    code, _, err = tmerge(monkeypatch, capsys, "init", "org/big", "org/small", "text.txt", "--to", "r.yaml")
    assert code == 2 and "r.yaml exists" in err


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_init_writes_what_a_start_says_and_nothing_else(monkeypatch, capsys, start: Start) -> None:
    """Reference: the bare recipe with the start's options set one by one."""
    code, out, _ = tmerge(monkeypatch, capsys, "init", "a/b", "c/d", "e/f", "--start", start.name, "--output", "o")
    bare: dict[str, Any] = {"source": "a/b", "target": "c/d", "calibration": {"repo_id": "e/f"}, "output": "o"}
    for name, value in start.says.items():
        *path, leaf = name.split(".")
        at = bare
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = value
    assert code == 0 and parse_recipe(out) == make_recipe(bare)
    assert max(len(line) for line in out.splitlines()) <= 120


def test_an_unknown_start_is_refused_with_those_that_there_are(monkeypatch, capsys) -> None:
    code, out, err = tmerge(monkeypatch, capsys, "init", "a/b", "c/d", "e/f", "--start", "fast")
    assert code == 2 and out == "" and "found fast, expected one of best, paper, everything" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("recipe.yaml",), "tmerge --batch recipe.yaml"),
        (("preset:malay",), "tmerge --batch preset:malay"),
        (("help",), "tmerge --help"),
        (("plam", "x"), "did you mean plan?"),
        (("done",), "tmerge watch done"),
    ],
)
def test_a_command_that_is_none_is_told_what_was_meant(
    tmp_path: Path, monkeypatch, capsys, given: tuple[str, ...], said: str
) -> None:
    write_run(tmp_path / "done")
    code, out, err = tmerge(monkeypatch, capsys, *given)
    assert code == 2 and out == "" and said in err


def completed(arguments: list[str], incomplete: str) -> list[str]:
    complete = ShellComplete(cli.tmerge, {}, "tmerge", "_TMERGE_COMPLETE")
    return [item.value for item in complete.get_completions(arguments, incomplete)]


def test_the_shell_knows_runs_presets_and_settings(tmp_path: Path) -> None:
    run_index.remember(write_run(tmp_path / "done").path)
    assert completed(["watch"], "d") == ["done"]
    assert completed(["compare"], "d") == ["done", "d"] and completed(["compare"], "preset:mal") == ["preset:malay"]
    assert completed(["presets"], "ma") == ["malay"]
    assert completed(["init", "--start"], "p") == ["paper"]
    assert completed(["plan"], "preset:m") == ["preset:malay", "preset:medical"]
    assert "fusion.alpha=" in completed(["demo", "--set"], "fusion.al")
    assert completed(["demo", "--set"], "fusion.coupling=") == ["fusion.coupling=plan", "fusion.coupling=barycentric"]
    assert isinstance(cli.tmerge, click.Group)


def test_two_starts_at_once_lose_nothing_and_a_torn_line_is_skipped(tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        run_index.remember(tmp_path / name)
    with open(run_index.state_folder() / run_index.NAME, "a") as lines:
        lines.write('{"path": "/x", "sta\n[]\n')
    assert [entry.path.name for entry in run_index.entries()] == ["one", "two"]
