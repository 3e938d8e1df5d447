"""Benchmarks from recipe to report; intervals against known answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.evaluation.test_lm_eval_harness import ROWS, TASK
from tests.engine.pair import make_pair, recipe_of
from tests.engine.report.sample_results import make_results
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.evaluation import benchmarks
from tmerge_tui.engine.evaluation.evaluator import Variant
from tmerge_tui.engine.evaluation.multiple_choice import answer, read_choices
from tmerge_tui.engine.report.render import write_report
from tmerge_tui.engine.report.verdict import with_benchmarks
from tmerge_tui.errors import CheckError, DataError, StorageError
from tmerge_tui.models.generation import continue_prompts
from tmerge_tui.run_folder import RunDir

QUESTIONS = [
    {"context": row["asked"], "choices": row["choices"], "label": (row["label"] + i) % 2} for i, row in enumerate(ROWS)
]


def ran(mapping: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], list[events.Event], RunDir]:
    recipe = recipe_of(mapping, **changes)
    folder, seen = RunDir.create(recipe.output), []
    pipeline.run(recipe, folder, seen.append)
    return json.loads((folder.path / "report.json").read_text()), seen, folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in QUESTIONS))
    return make_pair(folder) | {"folder": folder}


def mapping_of(pair: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in pair.items() if name != "folder"}


def test_choices_from_recipe_to_report(pair: dict[str, Any]) -> None:
    asked = {"choices": [str(pair["folder"] / "questions.jsonl")], "benchmark_source": True}
    report, seen, folder = ran(mapping_of(pair), evaluation={**pair["evaluation"], **asked})
    started = next(e for e in seen if isinstance(e, events.RunStarted))
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == [s["name"] for s in started.stages]
    rows = {row["model"]: row for row in report["benchmarks"]}
    assert [row["model"] for row in report["benchmarks"]] == ["target", "source", "fused"]
    questions = read_choices(recipe_of(mapping_of(pair), evaluation=asked).evaluation.choices[0])
    for model, where in (("target", pair["target"]), ("source", pair["source"]), ("fused", folder.model)):
        loaded = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
        right = answer(loaded, AutoTokenizer.from_pretrained(where), questions)
        row = rows[model]
        assert row["value"] == pytest.approx(sum(right) / len(right)), model
        assert row["questions"] == 5 and row["low"] <= row["value"] <= row["high"]
    assert rows["target"]["difference"] is None
    assert rows["fused"]["difference"] == pytest.approx(rows["fused"]["value"] - rows["target"]["value"])
    words = (folder.path / "report.md").read_text()
    assert "## Benchmarks" in words and "questions, accuracy by bytes" in words and "partial" not in words.lower()
    again, seen, _ = ran(mapping_of(pair), evaluation={**pair["evaluation"], **asked})
    assert again["benchmarks"] == report["benchmarks"]
    assert {e.outcome for e in seen if isinstance(e, events.StageFinished) and e.stage == "benchmark"} == {"cached"}


@pytest.mark.parametrize("who", ["target", "fused"])
def test_a_benchmark_that_fails_is_a_warning_in_a_report(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    files = [tmp_path / "good.jsonl", tmp_path / "bad.jsonl"]
    for file in files:
        file.write_text("\n".join(json.dumps(row) for row in QUESTIONS))
    asked = {**pair["evaluation"], "choices": [str(file) for file in files]}
    tried = []

    def fails(model: Any, tokenizer: Any, questions: Any, batch: int, warn: Any) -> list[bool]:
        (where,) = warn.args
        tried.append(where)
        if where.startswith("bad") and f", {who}" in where:
            raise DataError("bad cannot be reached", "a network", "connect it")
        return answer(model, tokenizer, questions, batch, warn)

    with monkeypatch.context() as patch:
        patch.setattr(benchmarks, "answer", fails)
        report, seen, folder = ran(mapping_of(pair), output=str(tmp_path / "run"), evaluation=asked)
    assert isinstance(seen[-1], events.RunFinished)
    assert [(row["task"], row["model"]) for row in report["benchmarks"]] == [("good", "target"), ("good", "fused")]
    told = "bad is not in the report: bad cannot be reached; connect it"
    assert [e.message for e in seen if isinstance(e, events.Warned) and e.where == "benchmark"] == [told]
    assert {"where": "benchmark", "message": told} in report["warnings"]
    assert told in (folder.path / "report.md").read_text()
    assert len(tried) == (3 if who == "target" else 4), "what failed once is not asked again"
    report, seen, _ = ran(mapping_of(pair), output=str(tmp_path / "run"), evaluation=asked)
    assert {row["task"] for row in report["benchmarks"]} == {"good", "bad"}, "and once it can be had, it is there"


def test_a_full_disk_is_no_failure_of_a_benchmark(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> list[bool]:
        raise StorageError("the disk is full")

    monkeypatch.setattr(benchmarks, "answer", full)
    asked = {**pair["evaluation"], "choices": [str(pair["folder"] / "questions.jsonl")]}
    with pytest.raises(StorageError):
        ran(mapping_of(pair), output=str(tmp_path / "run"), evaluation=asked)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval")
@pytest.mark.filterwarnings("default")
def test_a_task_asked_later_redoes_nothing_else(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    output = str(tmp_path / "run")
    ran(mapping_of(pair), output=output)
    data, task = tmp_path / "miller.jsonl", tmp_path / "miller.yaml"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    task.write_text(TASK.replace("DATA", str(data)))
    asked = {**pair["evaluation"], "tasks": [str(task)], "limit": 4}
    report, seen, folder = ran(mapping_of(pair), output=output, evaluation=asked)
    done = {e.stage for e in seen if isinstance(e, events.StageFinished) and e.outcome == "done"}
    assert done == {"check", "benchmark", "report"}
    assert [(row["model"], row["task"], row["limit"]) for row in report["benchmarks"]] == [
        ("target", "miller", 4),
        ("fused", "miller", 4),
    ]
    assert all(row["stderr"] is not None and row["questions"] == 4 for row in report["benchmarks"])
    assert "Partial results: 4 questions" in (folder.path / "report.md").read_text()


def test_a_file_that_is_no_benchmark_is_found_before_any_work(pair: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"evaluation\.choices"):
        ran(mapping_of(pair), output=str(tmp_path / "run"), evaluation={"choices": [str(tmp_path / "none.jsonl")]})


def found(task: str, right: list[float]) -> dict[str, Any]:
    return benchmarks._accuracy(task, right) | {"by": "tmerge", "limit": None}


def test_differences_are_paired() -> None:
    """The same answers but for one: a difference of 1/40, whose interval does not know how hard the questions are."""
    target = [float(i % 2) for i in range(40)]
    better = [1.0, *target[1:]]
    row = benchmarks._row(Variant("fused", 0.1), found("t", better), found("t", target), 1000, 0)
    assert row["difference"] == pytest.approx(1 / 40)
    assert 0 <= row["difference_low"] <= row["difference"] <= row["difference_high"] <= 4.5 / 40
    assert row["low"] < 0.45 < 0.6 < row["high"]
    assert row["stderr"] == pytest.approx(float(torch.tensor(better).std()) / 40**0.5)
    same = benchmarks._row(Variant("fused", 0.1), found("t", target), found("t", target), 1000, 0)
    assert (same["difference"], same["difference_low"], same["difference_high"]) == (0, 0, 0)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """300 files of 60 questions, true accuracy 0.6: 95 % intervals miss about 15 times (binomial: 4 to 32)."""
    generator = torch.Generator().manual_seed(0)
    missed = 0
    for _ in range(300):
        low, high = benchmarks._interval((torch.rand(60, generator=generator) < 0.6).float().tolist(), 1000, 0)
        missed += not low <= 0.6 <= high
    assert 4 <= missed <= 32


def test_the_report_says_better_and_worse_as_the_metric_has_it(tmp_path: Path) -> None:
    base = {"by": "lm-eval 0", "value": 0.5, "stderr": 0.1, "questions": 9, "limit": None, "alpha": None}
    target = base | {"model": "target", "difference": None, "difference_low": None, "difference_high": None}
    fused = base | {"model": "fused", "alpha": 0.1, "difference": 0.2, "difference_low": 0.1, "difference_high": 0.3}
    rows = []
    for metric, higher in (("acc", True), ("perplexity", False), ("odd", None)):
        rows += [row | {"task": "t|<b>", "metric": metric, "higher_is_better": higher} for row in (target, fused)]
    run = RunDir.create(tmp_path / "run")
    write_report(make_results() | {"benchmarks": rows}, run)
    lines = (run.path / "report.md").read_text().splitlines()
    said = {
        metric: next(x for x in lines if f", {metric}" in x and "fused" in x) for metric in ("acc", "perplexity", "odd")
    }
    assert said["acc"].endswith("| better |") and said["perplexity"].endswith("| worse |")
    assert said["odd"].endswith("| cannot tell |")
    verdict = with_benchmarks({"sentences": ["one."]}, rows)
    assert verdict["sentences"] == [
        "one.",
        "Benchmarks, fused at alpha 0.1 against the target: better on t|<b> (acc), worse on t|<b> (perplexity) and not "
        "told apart on 1 of 3.",
    ]
    assert "t|<b>" not in (run.path / "report.html").read_text()


def test_an_adapted_result_is_asked_too_and_continues_the_prompts(pair: dict[str, Any], tmp_path: Path) -> None:
    """Reference: the written folder, loaded by stock transformers."""
    report, _, folder = ran(
        mapping_of(pair),
        output=str(tmp_path / "run"),
        adaptation={"max_steps": 2, "block_length": 32, "learning_rate": 0.01},
        evaluation={**pair["evaluation"], "choices": [str(pair["folder"] / "questions.jsonl")], "max_new_tokens": 5},
    )
    assert [row["model"] for row in report["benchmarks"]] == ["target", "fused", "adapted"]
    assert [row["model"] for row in report["samples"]] == ["target", "fused", "adapted"]
    loaded = AutoModelForCausalLM.from_pretrained(folder.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    questions = read_choices(
        recipe_of(
            mapping_of(pair), evaluation={"choices": [str(pair["folder"] / "questions.jsonl")]}
        ).evaluation.choices[0]
    )
    right = answer(loaded, tokenizer, questions)
    assert report["benchmarks"][2]["value"] == pytest.approx(sum(right) / len(right))
    assert report["samples"][2]["text"] == continue_prompts(loaded, tokenizer, ["Two rivers"], 5)[0]
