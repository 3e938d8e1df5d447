"""What every merge method has to keep, and what adding one costs. References: the target's own bytes and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.methods.toy import Toy
from tests.engine.pair import make_pair, recipe_of
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.registry import METHODS
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.engine.weights.export import export
from tmerge_tui.events import Event, RunStarted, StageFinished, StageProgressed, StageStarted
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir

NAMES = [*METHODS, Toy.name]
OPTIONS: dict[str, Any] = {  # what makes a run small
    "ls_merge": {"chunk": 16, "width": 16, "blocks": 1, "window": 8, "batch_size": 64, "epochs": 6, "kl_epochs": 4,
                 "checkpoints": 2, "learning_rate": 5e-3},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    """The toy is a method like any other: a line of the registry is all that knows of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, Toy.name, Toy())
        yield


@pytest.fixture(scope="module")
def mapping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def recipe_for(mapping: dict[str, Any], name: str, output: Path, **changes: Any) -> Recipe:
    if name in OPTIONS:
        changes = {name: OPTIONS[name], **changes}
    return recipe_of(mapping, output=str(output), **changes).model_copy(update={"method": name})


def ran(recipe: Recipe) -> tuple[RunDir, list[Event]]:
    run, seen = RunDir.create(recipe.output), []
    pipeline.run(recipe, run, seen.append)
    return run, seen


@pytest.fixture(scope="module")
def finished(mapping: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: ran(recipe_for(mapping, name, folder / name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_stages_run_as_announced(finished: dict[str, Any], name: str) -> None:
    _, seen = finished[name]
    announced = [stage["name"] for stage in next(e for e in seen if isinstance(e, RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, StageFinished)] == announced


@pytest.mark.parametrize("name", NAMES)
def test_strength_0_is_the_target_byte_for_byte(mapping: dict[str, Any], tmp_path: Path, name: str) -> None:
    run, _ = ran(recipe_for(mapping, name, tmp_path / "run", fusion={"alpha": 0.0}))
    target = Path(mapping["target"])
    for file in target.iterdir():
        assert (run.model / file.name).read_bytes() == file.read_bytes() or file.name == "README.md", file.name


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_accounted_for_and_finite(mapping: dict[str, Any], finished: dict[str, Any], name: str) -> None:
    run, _ = finished[name]
    report = json.loads((run.path / "report.json").read_text())
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run.model, Path(mapping["target"])))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    changed = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert changed and changed <= set(report["tensors"]["fused"])
    assert report["tensors"]["copied"] + len(report["tensors"]["fused"]) == len(theirs)
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in ours.values())


@pytest.mark.parametrize("name", NAMES)
def test_placebos_are_measured_beside_the_result(finished: dict[str, Any], name: str) -> None:
    run, _ = finished[name]
    report = json.loads((run.path / "report.json").read_text())
    against = {row["against"] for row in report["contrasts"]}
    assert against and against <= {row["model"] for row in report["scores"]}
    assert isinstance(report["verdict"]["beats_placebos"], bool)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_is(mapping: dict[str, Any], finished: dict[str, Any], name: str) -> None:
    """Nothing else of the program knows it: the estimate, the card and the advice on placebos are made of this."""
    run, _ = finished[name]
    method, recipe = METHODS[name], recipe_for(mapping, name, run.path)
    prepared = prepare(recipe, cluster=False)
    needs = method.needs(recipe, prepared.models.each(lambda party: party.facts), 10, 4)
    assert needs.work in prepared.estimate.work and needs.work in prepared.estimate.memory
    assert method.about in (run.model / "README.md").read_text("utf-8")
    report = json.loads((run.path / "report.json").read_text())
    assert set(method.placebos(recipe)) == {row["against"] for row in report["contrasts"]}
    assert report["method"]["controls"] == method.controls and method.controls.count(".") == 1
    assert not any("placebo" in step["text"] for step in report["next"]), "all were measured"
    shown = dict(method.settings(recipe))
    assert shown and all(isinstance(value, (str, int, float, type(None))) for value in shown.values())
    assert report["method"]["settings"] == [list(one) for one in shown.items()]


@pytest.mark.parametrize("name", NAMES)
def test_running_again_computes_nothing_and_gives_the_same(
    mapping: dict[str, Any], finished: dict[str, Any], name: str
) -> None:
    run, _ = finished[name]
    before = (run.model / "model.safetensors").read_bytes(), json.loads((run.path / "report.json").read_text())
    _, seen = ran(recipe_for(mapping, name, run.path))
    outcomes = {e.stage: e.outcome for e in seen if isinstance(e, StageFinished)}
    assert outcomes["evaluate"] == outcomes["fold"] == "cached"
    assert (run.model / "model.safetensors").read_bytes() == before[0]
    assert json.loads((run.path / "report.json").read_text())["scores"] == before[1]["scores"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_cut_in_any_of_its_stages_goes_on_to_the_same(
    mapping: dict[str, Any], finished: dict[str, Any], tmp_path: Path, name: str
) -> None:
    """One run folder: every cut finds what the one before it left."""
    straight, seen = finished[name]
    recipe = recipe_for(mapping, name, tmp_path / "run")
    run = RunDir.create(recipe.output)
    for stage in METHODS[name].stages(recipe):
        for kind in (StageStarted, StageProgressed):
            assert any(isinstance(event, kind) and event.stage == stage.name for event in seen), stage.name

            def cut(event: Event, stage: str = stage.name, kind: Any = kind) -> None:
                if isinstance(event, kind) and event.stage == stage:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                pipeline.run(recipe, run, cut)
            assert not run.model.exists() and not (run.path / "report.json").exists()
    ran(recipe)
    for file in ("model/model.safetensors", "model/config.json"):
        assert (run.path / file).read_bytes() == (straight.path / file).read_bytes()
    ours, theirs = (json.loads((folder.path / "report.json").read_text()) for folder in (run, straight))
    assert ours["scores"] == theirs["scores"] and ours["contrasts"] == theirs["contrasts"]


@pytest.mark.parametrize("name", NAMES)
def test_an_update_has_a_name_of_its_own_at_every_strength(
    mapping: dict[str, Any], finished: dict[str, Any], tmp_path: Path, name: str
) -> None:
    run, _ = finished[name]
    prepared = prepare(recipe_for(mapping, name, run.path), cluster=False)
    merge = METHODS[name].merge(prepared, run, lambda event: None, lambda source: None)
    candidates = [merge.candidate(alpha) for alpha in (0.1, 0.2)]
    updates = [update for one in candidates for update in (one.update, *one.placebos.values())]
    assert len({json.dumps(update.key) for update in updates}) == len(updates)
    export(candidates[0].update, 0.1, tmp_path / "out", RunDir.create(tmp_path / "run"), lambda event: None)
    assert set(candidates[0].update.names) <= set(prepared.target.checkpoint.names)


def test_the_reports_of_any_method_have_its_own_part(finished: dict[str, Any]) -> None:
    run, _ = finished[Toy.name]
    report = json.loads((run.path / "report.json").read_text())
    assert report["volume"] == [1.0] and "layer_plans" not in report
    for name in ("report.html", "report.md"):
        assert (run.path / name).stat().st_size > 1000
