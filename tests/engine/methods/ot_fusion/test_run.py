"""A whole run: strengths by part on validation text, training from the merged model, and what changes redo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pair import make_pair, recipe_of
from tmerge_tui.engine import pipeline
from tmerge_tui.events import StageFinished
from tmerge_tui.run_folder import RunDir

TRAINED = {"max_steps": 2, "batch_size": 4, "accumulation": 1, "block_length": 32, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def mapping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**make_pair(tmp_path_factory.mktemp("pair"), target="gpt2"), "method": "ot_fusion"}  # tied, and trained


def ran(mapping: dict[str, Any], folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    run, seen = RunDir.create(folder), []
    pipeline.run(recipe_of(mapping, output=str(folder), **changes), run, seen.append)
    report = json.loads((run.path / "report.json").read_text())
    return report, {e.stage: e.outcome for e in seen if isinstance(e, StageFinished)}


def test_strength_is_chosen_for_each_part(mapping: dict[str, Any], tmp_path: Path) -> None:
    changes = {"fusion": {"alpha": "auto"}, "calibration": {"samples": 40, "validation": 10}}
    report, _ = ran(mapping, tmp_path / "run", **changes)
    assert set(report["strength"]["strengths"]) == {"attention", "feed_forward", "norms", "embeddings"}
    assert {"spaces", "layer_plans", "projections"} <= set(report)
    assert "Spaces" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_training_from_the_merged_model_and_what_changes_redo(mapping: dict[str, Any], tmp_path: Path) -> None:
    report, _ = ran(mapping, tmp_path / "run", adaptation=TRAINED)
    assert {"adapted"} <= {row["model"] for row in report["adaptation"]["rows"]}
    _, again = ran(mapping, tmp_path / "run", adaptation=TRAINED)
    assert again["match"] == again["carry"] == again["adapt"] == "cached"
    _, other = ran(mapping, tmp_path / "run", ot_fusion={"residual": "identity"})
    assert other["extract_source"] == other["extract_target"] == "cached"
    assert other["match"] == other["carry"] == "done"


def test_weights_read_no_text(mapping: dict[str, Any], tmp_path: Path) -> None:
    report, stages = ran(mapping, tmp_path / "run", ot_fusion={"cost": "weights"})
    assert "extract_source" not in stages and "measure_source" not in stages and report["calibration"]["rows"] == 0
    assert any(row["model"] == "source" for row in report["scores"]), "measured all the same"
