"""A tuned source. References: a source whose files hold the tuned weights, names in the file, what is measured."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.pair import make_pair, recipe_of
from tests.engine.training.test_teacher import TEXTS, Bench
from tests.tiny import make_model
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.engine.training import tune as tuning
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.tune import Tuned, tune
from tmerge_tui.engine.weights.install import installed
from tmerge_tui.errors import RecipeError
from tmerge_tui.machine import Memory
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import read_facts
from tmerge_tui.run_folder import RunDir

TUNED = {"tune": "full", "tune_learning_rate": 0.01, "tune_epochs": 3, "events": 8}
ADAPT = {
    "samples": 40, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 1, "learning_rate": 1e-4,
    "compare": ["sft", "distill"], "teacher": TUNED, "controls": ["untuned"], "checkpoints": 1, "max_steps": 3,
}  # fmt: skip
TEXT = {"samples": 60, "validation": 10, "holdout": 10}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def recipe(pair: dict[str, Any], output: Path, margin: float = 0.001, **adaptation: Any) -> Any:
    measured = {"margin": margin}
    adapted = {**ADAPT, **adaptation}
    return recipe_of(pair, calibration=TEXT, adaptation=adapted, evaluation=measured, output=str(output))


def run(pair: dict[str, Any], output: Path, **adaptation: Any) -> tuple[RunDir, list[events.Event]]:
    folder, seen = RunDir.create(output), []
    pipeline.run(recipe(pair, output, **adaptation), folder, seen.append)
    return folder, seen


def report_of(folder: RunDir) -> dict[str, Any]:
    return json.loads((folder.path / "report.json").read_text())["adaptation"]


def stages(seen: list[events.Event]) -> tuple[list[str], dict[str, str]]:
    """(announced, how each ended)"""
    announced = [s["name"] for s in next(e for e in seen if isinstance(e, events.RunStarted)).stages]
    ended = [(e.stage, e.outcome) for e in seen if isinstance(e, events.StageFinished)]
    assert [stage for stage, _ in ended] == announced
    return announced, dict(ended)


def directly(pair: dict[str, Any], output: Path, **teacher: Any) -> Tuned:
    prepared = prepare(recipe(pair, output, teacher={**TUNED, **teacher}))
    return tune(prepared, prepared.corpus.calibration[:40], RunDir.create(output), lambda event: None)


def test_the_source_is_tuned_before_it_teaches_and_the_report_says_what_that_gave(
    pair: dict[str, Any], tmp_path: Path
) -> None:
    folder, seen = run(pair, tmp_path / "run")
    announced, _ = stages(seen)
    assert announced.index("tune") < announced.index("teacher") < announced.index("teacher_untuned")
    found = report_of(folder)
    tuned = found["tuned"]
    assert tuned["after"] < tuned["sft"] - 0.001 and tuned["after"] < tuned["before"] - 0.001
    assert tuned["why_not"] == "" and tuned["method"] == "full" and tuned["texts"] == 10
    losses = {each["model"]: each["loss"] for each in found["trainings"]}
    assert list(losses) == ["adapted", "sft", "adapted_distilled", "distilled", "control_untuned"]
    assert losses["distilled"] != losses["control_untuned"] and found["result"] == "adapted_distilled"
    assert "The source was tuned first (every weight but embeddings and head)" in (
        folder.path / "report.md"
    ).read_text().replace("\n", " ")
    before = {path: path.stat().st_mtime_ns for path in folder.state.iterdir()}
    _, seen = run(pair, tmp_path / "run")
    outcomes = stages(seen)[1]
    assert {outcomes[stage] for stage in ("tune", "teacher", "teacher_untuned", "adapt")} == {"cached"}
    assert {path: path.stat().st_mtime_ns for path in folder.state.iterdir()} == before


def test_a_source_that_tells_the_text_no_better_than_sft_teaches_nothing(pair: dict[str, Any], tmp_path: Path) -> None:
    teacher = {**TUNED, "tune_learning_rate": 1e-9, "tune_epochs": 1}
    changes = {"teacher": teacher, "learning_rate": 0.01, "compare": ["distill"], "max_steps": 40}
    folder, seen = run(pair, tmp_path / "run", margin=1, **changes)
    found = report_of(folder)
    assert [row["model"] for row in found["rows"]] == ["target", "fused", "adapted", "sft"]
    assert found["result"] == "adapted" and found["tuned"]["sft"] - found["tuned"]["after"] < 1
    warnings = [e.message for e in seen if isinstance(e, events.Warned) and "is not trained" in e.message]
    assert len(warnings) == 3 and all("there is nothing to teach" in text for text in warnings)
    assert any("tuning did not help" in e.message for e in seen if isinstance(e, events.Warned))
    assert "Nothing was distilled" in (folder.path / "report.md").read_text()


def test_a_source_that_tuning_has_made_worse_teaches_as_it_was(pair: dict[str, Any], tmp_path: Path) -> None:
    teacher = {**TUNED, "tune_learning_rate": 30.0, "tune_epochs": 1}
    folder, seen = run(pair, tmp_path / "run", margin=0, teacher=teacher, learning_rate=1e-9, warmup=0)
    found = report_of(folder)
    assert found["tuned"]["after"] > found["tuned"]["before"] and found["tuned"]["helped"] is False
    losses = {each["model"]: each["loss"] for each in found["trainings"]}
    assert losses["distilled"] == losses["control_untuned"], "it was taught by what tuning has spoilt"
    assert any("the source teaches as it was" in e.message for e in seen if isinstance(e, events.Warned))
    assert "Tuning did not help, so the source as it was is the teacher" in (folder.path / "report.md").read_text()


def test_embeddings_and_head_stay_and_what_is_left_is_the_best_moment(pair: dict[str, Any], tmp_path: Path) -> None:
    tuned = directly(pair, tmp_path / "run")
    whole = set(Checkpoint(Path(pair["source"])).names)
    assert whole - set(tuned.piece.names) == {"model.embed_tokens.weight", "lm_head.weight"}
    losses = [loss for _, loss in tuned.piece.figures.measured]
    assert len(losses) > 3 and losses[0] > min(losses)
    assert directly(pair, tmp_path / "run").plain() == tuned.plain()


def test_low_rank_updates_are_of_projections(pair: dict[str, Any], tmp_path: Path) -> None:
    tuned = directly(pair, tmp_path / "run", tune="lora")
    assert tuned.method == "lora" and tuned.after < tuned.before
    assert all("_proj." in name for name in tuned.piece.names) and len(tuned.piece.names) == 3 * 7


def test_within_one_tokenizer_the_source_reads_along_with_its_tuned_weights(tmp_path: Path) -> None:
    mapping = make_pair(tmp_path, target="llama")
    make_model(tmp_path / "source", "llama", hidden=48, layers=3, intermediate=64, seed=1)
    folder, seen = run(mapping, tmp_path / "out")
    found = report_of(folder)
    losses = {each["model"]: each["loss"] for each in found["trainings"]}
    assert "same tokenizer" in found["distillation"] and losses["distilled"] != losses["control_untuned"]
    outcomes = stages(seen)[1]
    assert {outcomes["teacher"], outcomes["teacher_untuned"]} == {"skipped"}

    _, seen = run(mapping, tmp_path / "other", teacher={"events": 8}, controls=[])
    plain = {each["model"]: each["loss"] for each in report_of(RunDir(tmp_path / "other"))["trainings"]}
    assert plain["distilled"] == losses["control_untuned"], "the control had the tuned weights"


def test_what_is_read_is_what_a_source_with_the_tuned_weights_says(pair: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(pair, tmp_path / "a")
    tensors = load_file(Path(pair["source"]) / "model.safetensors")
    changed = {name: tensor + 0.1 for name, tensor in tensors.items() if "down_proj" in name}
    (tmp_path / "a" / "run" / "state").mkdir(parents=True, exist_ok=True)
    piece = bench.run.piece("tuned", "x")
    bench.run.save(piece, changed)
    update = TrainedPiece("source_tuned", 0, piece, "x", Checkpoint(Path(pair["source"])), "free")
    untuned = bench.read()
    found = bench.read(content=("w", "x"), inside=partial(installed, update=update))

    shutil.copytree(pair["source"], tmp_path / "tuned")
    save_file({**tensors, **changed}, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    expected = Bench({**pair, "source": str(tmp_path / "tuned")}, tmp_path / "b").read()
    assert len(found.events) == len(TEXTS)
    for a, b, c in zip(found.events, expected.events, untuned.events, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
        assert a.masses.shape != c.masses.shape or not np.allclose(a.masses, c.masses)


@pytest.mark.parametrize(
    ("limit", "budget", "expected"), [(None, None, "full"), (15, None, "lora"), (16, None, "full"), (None, 15, "lora")]
)
def test_auto_trains_every_weight_where_the_memory_holds_it(
    pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch, limit: int | None, budget: int | None, expected: str
) -> None:
    facts = read_facts(Path(pair["source"]), "source")
    limited = None if limit is None else limit * facts.parameters
    memory = SimpleNamespace(memory=lambda: Memory(2**40, 0, limited))
    monkeypatch.setattr(tuning, "machine", memory)
    asked = None if budget is None else budget * facts.parameters
    assert tuning.method_of("auto", facts, torch.device("cpu"), asked) == expected
    assert tuning.method_of("lora", facts, torch.device("cpu"), None) == "lora"


def test_the_control_needs_a_tuned_source(pair: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"it needs teacher\.tune"):
        recipe(pair, tmp_path, teacher={"events": 8})
