"""`tmerge eval`: the recipe that it runs, what it prints, and what stays when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.command_line import inside, tmerge
from tests.engine.report.sample_results import make_attribution, make_general, make_safety
from tests.tiny import LINES, make_model
from tmerge_tui.commands.evaluate import answers
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import score
from tmerge_tui.recipe import load_recipe
from tmerge_tui.recipe.evaluation import Attribution, General
from tmerge_tui.recipe.safety import Safety
from tmerge_tui.run_folder import RunDir

ROW: dict[str, Any] = {
    "task": "miller", "metric": "acc", "by": "lm-eval 0", "value": 0.5, "stderr": 0.1, "low": 0.3, "high": 0.7,
    "questions": 9, "limit": None, "higher_is_better": True, "model": "target", "alpha": None, "difference": None,
    "difference_low": None, "difference_high": None,
}  # fmt: skip


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    run = RunDir.create(tmp_path / "run")
    recipe = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": "somewhere/else"}
    run.recipe.write_text(yaml.safe_dump(recipe | {"evaluation": {"tasks": ["piqa"], "prompts": ["Two"]}}))
    (run.path / "report.json").write_text(json.dumps({"benchmarks": [ROW]}))
    return run


def test_what_is_asked_is_added_to_the_recipe(finished: RunDir, tmp_path: Path) -> None:
    done = tmerge("eval", finished.path, "--tasks", "arc_easy,piqa", "--tasks", "t.yaml", "--limit", "5", "--source")
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(finished.recipe)
    assert recipe.evaluation.tasks == ("piqa", "arc_easy", str(Path("t.yaml").absolute()))
    assert (recipe.evaluation.limit, recipe.evaluation.benchmark_source) == (5, True)
    assert recipe.evaluation.num_fewshot is None and recipe.evaluation.prompts == ("Two",)
    assert recipe.output == str(finished.path)
    assert "miller, acc: target 0.5000 ± 0.1000" in done.stdout


def test_choices_are_added_once(finished: RunDir, tmp_path: Path) -> None:
    for _ in range(2):
        done = tmerge("eval", finished.path, "--choices", tmp_path / "q.jsonl")
        assert done.returncode == 0, done.stderr
    assert [c.path for c in load_recipe(finished.recipe).evaluation.choices] == [str(tmp_path / "q.jsonl")]


def test_a_failure_leaves_the_recipe_as_it_was(finished: RunDir) -> None:
    before = finished.recipe.read_bytes()
    done = tmerge("eval", finished.path, "--tasks", "arc_easy", fake="numerics")
    assert done.returncode == 1 and finished.recipe.read_bytes() == before


def test_a_benchmark_that_the_report_is_without_is_a_failure(finished: RunDir) -> None:
    before = finished.recipe.read_bytes()
    left_out = {"where": "benchmark", "message": "arc_easy is not in the report: no network"}
    warnings = [{"where": "evaluate", "message": "another"}, left_out]
    (finished.path / "report.json").write_text(json.dumps({"benchmarks": [ROW], "warnings": warnings}))
    done = tmerge("eval", finished.path, "--tasks", "arc_easy", "--quiet")
    assert done.returncode == 1 and finished.recipe.read_bytes() == before
    assert done.stderr == "error: arc_easy is not in the report: no network\n"
    assert "miller, acc: target 0.5000" in done.stdout


def test_what_else_has_changed_is_asked_and_told(finished: RunDir) -> None:
    general = make_general() | {"rows": [row | {"alpha": None} for row in make_general()["rows"]]}
    results = {"verdict": {"alpha": None}, "general": general, "attribution": make_attribution()}
    (finished.path / "report.json").write_text(json.dumps(results))
    done = tmerge("eval", finished.path, "--general-texts", "org/data", "--attribution")
    assert done.returncode == 0, done.stderr
    evaluation = load_recipe(finished.recipe).evaluation
    assert evaluation.general == General(texts="org/data") and evaluation.attribution == Attribution()
    assert evaluation.tasks == ("piqa",)
    lost = "Lost 0.0123 bits per byte on general English text (95 % interval +0.0103 to +0.0143)."
    gained = "25.0 % (20.0 % to 30.0 %) of the gap to it was closed"
    assert lost in done.stdout and gained in done.stdout
    done = tmerge("eval", finished.path, "--general")
    assert load_recipe(finished.recipe).evaluation.general == General(texts="org/data"), "what the recipe had stays"
    assert lost in done.stdout and gained not in done.stdout


def test_the_safety_screen_is_asked_and_told(finished: RunDir, tmp_path: Path) -> None:
    results = {"verdict": {"alpha": 0.1}, "safety": make_safety()}
    (finished.path / "report.json").write_text(json.dumps(results))
    done = tmerge("eval", finished.path, "--safety")
    assert done.returncode == 0, done.stderr
    assert load_recipe(finished.recipe).evaluation.safety == Safety()
    assert "Safety screen, no certificate: Fused at alpha 0.1 declines 12 points less than the target" in done.stdout
    done = tmerge("eval", finished.path, "--safety-prompts", tmp_path / "mine.jsonl")
    assert load_recipe(finished.recipe).evaluation.safety == Safety(path=str(tmp_path / "mine.jsonl"))


def test_a_model_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: `score` on the same texts."""
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other", "qwen2", seed=1)
    (tmp_path / "other.txt").write_text("\n".join(f"{i} {line}" for i, line in enumerate(LINES)))
    asked = ("eval", str(one), "--general-texts", "other.txt", "--quiet", "--json")
    code, out, _ = inside(tmp_path, monkeypatch, capsys, *asked, "--against", str(other))
    found = json.loads(out)
    assert code == 0 and found["texts"] == len(LINES) and found["difference"]["low"] < found["difference"]["high"]
    samples = [Sample(text=f"{i} {line}") for i, line in enumerate(LINES)]
    for row, folder in zip(found["rows"], (one, other), strict=True):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        assert row["bits_per_byte"] == pytest.approx(score(model, tokenizer, samples).bits_per_byte, rel=1e-5)
    code, out, _ = inside(tmp_path, monkeypatch, capsys, "eval", str(one), "--general-texts", "other.txt", "--quiet")
    assert code == 0 and out.endswith("bits per byte, 24 of general text (other.txt)\n") and len(out.splitlines()) == 1
    code, _, err = inside(tmp_path, monkeypatch, capsys, "eval", str(one), "--attribution")
    assert code == 2 and "attribution of a model" in err and "the folder of a finished run" in err
    code, _, err = inside(tmp_path, monkeypatch, capsys, "eval", str(one), "--general-texts", "none.txt", "--quiet")
    assert code == 1 and "none.txt" in err


def test_nothing_to_ask_and_nobody_to_ask(finished: RunDir, tmp_path: Path) -> None:
    done = tmerge("eval", finished.path)
    assert done.returncode == 2 and "--tasks" in done.stderr
    assert tmerge("eval", tmp_path / "none", "--tasks", "piqa").returncode == 1
    (finished.path / "report.json").unlink()
    done = tmerge("eval", finished.path, "--tasks", "piqa")
    assert done.returncode == 1 and "has not finished" in done.stderr


def test_lines_of_answers() -> None:
    fused = ROW | {"model": "fused", "alpha": 0.1, "value": 0.6, "difference": 0.1, "difference_low": -0.1}
    fused |= {"difference_high": 0.3, "limit": 9}
    assert list(answers({"benchmarks": [fused]})) == [
        "miller, acc: fused at alpha 0.1 0.6000 ± 0.1000, +0.1000 to the target (-0.1000 to +0.3000), "
        "partial: 9 questions at most"
    ]
