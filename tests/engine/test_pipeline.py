"""The whole pipeline on tiny models. References: the target's own bytes, stock transformers, an undisturbed run."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.engine.pair import make_pair, recipe_of
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.errors import StorageError
from tmerge_tui.recipe import Recipe, load_recipe
from tmerge_tui.run_folder import RunDir


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def run(recipe: Recipe) -> tuple[RunDir, list[events.Event]]:
    seen: list[events.Event] = []
    folder = RunDir.create(recipe.output)
    pipeline.run(recipe, folder, seen.append)
    return folder, seen


def outcomes(seen: list[events.Event]) -> dict[str, str]:
    return {e.stage: e.outcome for e in seen if isinstance(e, events.StageFinished)}


@pytest.fixture(scope="module")
def finished(pair: dict[str, Any]) -> tuple[RunDir, list[events.Event]]:
    return run(recipe_of(pair))


def test_stages_run_in_the_announced_order(finished: tuple[RunDir, list[events.Event]]) -> None:
    _, seen = finished
    started = next(e for e in seen if isinstance(e, events.RunStarted))
    announced = [stage["name"] for stage in started.stages]
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == announced
    assert sum(stage["weight"] for stage in started.stages) == pytest.approx(1)
    assert isinstance(seen[-1], events.RunFinished)


def test_every_pair_of_layers_takes_part(finished: tuple[RunDir, list[events.Event]]) -> None:
    _, seen = finished
    pairs = {(e.l, e.m, e.side) for e in seen if isinstance(e, events.PairSolved)}
    assert len(pairs) == 2 * 3 * 11  # target layers, source layers, sides
    plans = {e.projection: torch.tensor(e.P) for e in seen if isinstance(e, events.LayerPlanSolved)}
    assert set(plans) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert all(P.shape == (2, 3) for P in plans.values())


def test_events_survive_the_file(finished: tuple[RunDir, list[events.Event]]) -> None:
    for i, event in enumerate(finished[1]):
        line = events.decode(events.encode(event, i, 0.0))
        assert line is not None and type(line.event) is type(event)


def test_the_model_loads_in_stock_transformers_and_differs_only_where_fused(
    pair: dict[str, Any], finished: tuple[RunDir, list[events.Event]]
) -> None:
    folder = finished[0]
    model, info = AutoModelForCausalLM.from_pretrained(folder.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    target, fused = load_file(Path(pair["target"]) / "model.safetensors"), load_file(folder.model / "model.safetensors")
    report = json.loads((folder.path / "report.json").read_text())
    changed = {name for name in target if not torch.equal(target[name], fused[name])}
    assert changed == set(report["tensors"]["fused"])
    assert len(changed) + report["tensors"]["copied"] == len(target)
    for kind, axis in (("q", "rows"), ("o", "columns")):
        name = f"model.layers.0.self_attn.{kind}_proj.weight"
        difference = (target[name] != fused[name]).any(1 if axis == "rows" else 0)
        assert int(difference.sum()) == 8


def test_every_other_file_is_the_targets(pair: dict[str, Any], finished: tuple[RunDir, list[events.Event]]) -> None:
    target, model = Path(pair["target"]), finished[0].model
    for file in target.iterdir():
        if file.suffix != ".safetensors":
            assert filecmp.cmp(file, model / file.name, shallow=False), file.name
    assert {f.name for f in model.iterdir()} - {f.name for f in target.iterdir()} == {"README.md", "tmerge_recipe.yaml"}


def test_alpha_zero_gives_the_targets_bytes_back(pair: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = run(recipe_of(pair, fusion={"alpha": 0.0}, output=str(tmp_path / "run")))
    ours, theirs = folder.model / "model.safetensors", Path(pair["target"]) / "model.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_report_says_what_was_measured(finished: tuple[RunDir, list[events.Event]]) -> None:
    folder, seen = finished
    report = json.loads((folder.path / "report.json").read_text())
    assert {s["model"] for s in report["scores"]} == {"target", "source", "fused", "shrink", "permuted"}
    measured = {e.model: e.value for e in seen if isinstance(e, events.Metric)}
    assert {s["model"]: s["bits_per_byte"] for s in report["scores"]} == measured
    assert {c["against"] for c in report["contrasts"]} == {"shrink", "permuted"}
    assert report["verdict"]["headline"] in (folder.path / "report.md").read_text().splitlines()[0]
    assert len(report["pairs"]) == 66 and report["heatmaps"] and report["mass"]
    assert report["recipe"]["resolved"]["calibration"]["sha256"]


def test_the_resolved_recipe_runs_again_and_redoes_nothing(finished: tuple[RunDir, list[events.Event]]) -> None:
    _, seen = run(load_recipe(finished[0].recipe))
    work = {stage: outcome for stage, outcome in outcomes(seen).items() if stage not in ("check", "report")}
    assert set(work.values()) == {"cached"}
    assert next(e for e in seen if isinstance(e, events.RunStarted)).resumed


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"fusion": {"alpha": [0.1, 0.2]}, "evaluation": {"controls_at": "all"}}, {"fold", "evaluate"}),
        ({"fusion": {"norm": "keep"}}, {"fold", "evaluate"}),
        ({"fusion": {"k": 6}}, {"fuse", "fold", "evaluate"}),
        ({"transport": {"epsilon": 0.05}}, {"transport", "fuse", "fold", "evaluate"}),
        ({"transport": {"eta": 0.05}}, {"fuse", "fold", "evaluate"}),
    ],
)
def test_a_change_redoes_what_depends_on_it_only(
    pair: dict[str, Any], finished: tuple[RunDir, list[events.Event]], change: dict[str, Any], redone: set[str]
) -> None:
    _, seen = run(recipe_of(pair, **change))
    assert {stage for stage, outcome in outcomes(seen).items() if outcome == "done"} - {"check", "report"} == redone


def test_a_list_of_alphas_gives_a_folder_each(pair: dict[str, Any], tmp_path: Path) -> None:
    every = {"controls_at": "all"}
    folder, _ = run(recipe_of(pair, fusion={"alpha": [0.1, 0.3]}, evaluation=every, output=str(tmp_path / "run")))
    single, _ = run(recipe_of(pair, fusion={"alpha": 0.3}, output=str(tmp_path / "single")))
    assert sorted(p.name for p in folder.path.glob("model*")) == ["model-alpha-0.1", "model-alpha-0.3"]
    ours, theirs = folder.path / "model-alpha-0.3" / "model.safetensors", single.model / "model.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()


def test_of_a_list_the_hold_out_measures_what_validation_text_chooses(pair: dict[str, Any], tmp_path: Path) -> None:
    """Reference: the same list with every strength measured, and the scores of its validation text."""
    calibration = {**pair["calibration"], "samples": 30}  # leaves text to choose on
    changes = {"fusion": {"alpha": [0.3, 0.05]}, "calibration": calibration}
    folder, seen = run(recipe_of(pair, **changes, output=str(tmp_path / "run")))
    report = json.loads((folder.path / "report.json").read_text())
    trials, chosen = report["strength"]["trials"], report["verdict"]["alpha"]
    assert [trial["alpha"] for trial in trials] == [0.3, 0.05]
    assert [trial["alpha"] for trial in trials if trial["kept"]] == [chosen]
    assert chosen == min(trials, key=lambda trial: trial["bits_per_byte"])["alpha"]
    measured = {(row["model"], row["alpha"]): row["bits_per_byte"] for row in report["scores"]}
    assert set(measured) == {("target", None), ("source", None)} | {
        (m, chosen) for m in ("fused", "shrink", "permuted")
    }
    assert report["verdict"]["output"] == f"model-alpha-{chosen:g}"
    assert sorted(p.name for p in folder.path.glob("model*")) == ["model-alpha-0.05", "model-alpha-0.3"]
    assert any(sentence.startswith("Alpha was chosen on") for sentence in report["verdict"]["sentences"])
    assert "strength" in outcomes(seen)

    every, _ = run(recipe_of(pair, **changes, evaluation={"controls_at": "all"}, output=str(tmp_path / "all")))
    rows = json.loads((every.path / "report.json").read_text())["scores"]
    assert {row["alpha"] for row in rows if row["model"] == "permuted"} == {0.3, 0.05}


def test_the_same_recipe_gives_the_same_bytes(pair: dict[str, Any], tmp_path: Path) -> None:
    first, _ = run(recipe_of(pair, output=str(tmp_path / "a")))
    second, _ = run(recipe_of(pair, output=str(tmp_path / "b")))
    assert (first.model / "model.safetensors").read_bytes() == (second.model / "model.safetensors").read_bytes()


def test_the_pot_and_plain_solvers_fuse_to_the_same_weights(pair: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for solver in ("fast", "plain", "pot"):
        changes = {"transport": {"solver": solver, "projections": ["q"], "max_iterations": 2000}}
        folder, _ = run(recipe_of(pair, output=str(tmp_path / solver), **changes))
        found.append(load_file(folder.model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_span_pooling_runs_end_to_end(pair: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = run(recipe_of(pair, calibration={"pooling": "span"}, output=str(tmp_path / "run")))
    report = json.loads((folder.path / "report.json").read_text())
    assert report["calibration"]["rows"] > 5 * report["calibration"]["samples"]


def test_killed_in_each_stage_resumes_to_the_same_tensors(pair: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 in the middle of each stage, then the same recipe again: bytes of an undisturbed run."""
    (tmp_path / "pair.json").write_text(json.dumps(pair))
    script = [sys.executable, "-m", "tests.engine.killed", str(tmp_path / "pair.json"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    killed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("killed")]
    assert killed == [name for name, _, _ in pipeline.stages_of(recipe_of(pair))]


def test_a_full_disk_names_itself_and_loses_nothing(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(pair, output=str(tmp_path / "run"))
    real = os.replace
    written: list[str] = []

    def replace(src: Any, dst: Any) -> None:
        if "transport-" in str(dst):
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(dst))
            written.append(str(dst))
        real(src, dst)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StorageError, match="disk full") as failure:
        run(recipe)
    assert "finished pieces are kept" in failure.value.hint
    monkeypatch.undo()
    folder, seen = run(recipe)
    assert outcomes(seen)["extract_source"] == outcomes(seen)["extract_target"] == "cached"
    assert len(list(folder.state.glob("transport-*"))) == 22
    assert not list(folder.state.glob(".*"))
