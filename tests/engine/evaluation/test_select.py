"""Choosing on validation text. References: scores written by hand, and the target's own bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pair import make_pair, recipe_of
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.evaluation.select import select
from tmerge_tui.events import Event, RunStarted, StageFinished
from tmerge_tui.recipe.evaluation import Evaluation
from tmerge_tui.run_folder import RunDir

SAMPLES = [Sample(text=str(i)) for i in range(20)]


def chosen(monkeypatch: pytest.MonkeyPatch, told: dict[str, float], **options: Any) -> str:
    """Which of some models is taken when they need so many bits per byte."""

    def scores(self: Any, variant: Variant, samples: Any, progress: Any) -> Scores:
        progress.advance(len(samples))
        return Scores(tuple(100 * told[variant.model] for _ in samples), (100,) * len(samples))

    monkeypatch.setattr(Evaluator, "scores", scores)
    nothing: Any = None
    evaluator = Evaluator(nothing, Evaluation(resamples=100, **options), 512, 0, nothing, lambda event: None)
    candidates = [Variant(name) for name in told if name != "target"]
    return select(evaluator, candidates, SAMPLES, lambda event: None).variant.model


def test_the_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {"target": 2.0, "fused": 1.9, "sft": 1.7, "distilled": 1.8}) == "sft"


def test_less_than_the_margin_is_no_reason_to_leave_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {"target": 2.0, "fused": 1.9995}) == "target"
    assert chosen(monkeypatch, {"target": 2.0, "fused": 1.9995}, margin=0.0001) == "fused"


def test_a_broken_candidate_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {"target": 2.0, "fused": float("nan"), "sft": 3.0}) == "target"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def ran(mapping: dict[str, Any], **changes: Any) -> tuple[RunDir, list[Event]]:
    recipe = recipe_of(mapping, select="validation", calibration={"samples": 30, "validation": 10}, **changes)
    run, seen = RunDir.create(recipe.output), []
    pipeline.run(recipe, run, seen.append)
    return run, seen


def test_where_nothing_helps_model_is_the_targets_bytes(pair: dict[str, Any], tmp_path: Path) -> None:
    run, seen = ran(pair, output=str(tmp_path / "run"), evaluation={"margin": 1.0})
    for file in Path(pair["target"]).iterdir():
        assert file.name == "README.md" or (run.model / file.name).read_bytes() == file.read_bytes(), file.name
    report = json.loads((run.path / "report.json").read_text())
    assert report["verdict"]["headline"].startswith("Nothing beat the target")
    assert report["tensors"]["fused"] == [] and report["selection"]["model"] == "target"
    announced = [stage["name"] for stage in next(e for e in seen if isinstance(e, RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, StageFinished)] == announced


def test_a_training_that_helps_is_what_is_written(pair: dict[str, Any], tmp_path: Path) -> None:
    """Reference: the scores of the written folder's row of the hold-out, and that no other model is kept."""
    training = {"compare": ["sft"], "block_length": 32, "learning_rate": 3e-3, "epochs": 4, "packing": "pad"}
    run, _ = ran(pair, output=str(tmp_path / "run"), adaptation=training)
    report = json.loads((run.path / "report.json").read_text())
    told = {row["model"]: row["bits_per_byte"] for row in report["selection"]["rows"]}
    assert report["selection"]["model"] == min(told, key=lambda model: told[model]) != "target"
    assert [path.name for path in run.path.glob("model*")] == ["model"]
    assert report["output"][0]["trained"] is (report["selection"]["model"] in ("adapted", "sft"))
    assert "model/ is" in report["verdict"]["headline"]
    before = (run.model / "model.safetensors").read_bytes()
    _, again = ran(pair, output=str(tmp_path / "run"), adaptation=training)
    assert {e.outcome for e in again if isinstance(e, StageFinished) and e.stage in ("select", "fold")} == {"cached"}
    assert (run.model / "model.safetensors").read_bytes() == before
