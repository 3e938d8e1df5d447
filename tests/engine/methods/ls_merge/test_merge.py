"""The merge, its placebos and its checks. References: the target's own weights, and identities in place of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.methods.test_contract import OPTIONS
from tests.engine.pair import make_pair, recipe_of
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.ls_merge import needs
from tmerge_tui.engine.methods.ls_merge.merge import LatentUpdate, truncated, with_row_norms
from tmerge_tui.engine.methods.ls_merge.stage import PLACEBOS, LatentSpaceMerge
from tmerge_tui.engine.preflight import check as preflight
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.errors import CheckError
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir

SMALL = OPTIONS["ls_merge"]


@pytest.fixture(scope="module")
def mapping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pair")
    return make_pair(folder) | {"method": "ls_merge", "output": str(folder / "run")}


def asked(mapping: dict[str, Any], options: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    return recipe_of(mapping, ls_merge=SMALL | (options or {}), **changes)


@pytest.fixture(scope="module")
def run(mapping: dict[str, Any]) -> RunDir:
    run = RunDir.create(mapping["output"])
    pipeline.run(asked(mapping), run, lambda event: None)
    return run


@pytest.fixture(scope="module")
def merge(mapping: dict[str, Any], run: RunDir) -> Any:
    prepared = prepare(asked(mapping), cluster=False)
    return LatentSpaceMerge().merge(prepared, run, lambda event: None, lambda source: None)


def weight(update: LatentUpdate, kind: str = "up") -> torch.Tensor:
    name = next(name for name in update.names if f".0.mlp.{kind}_proj" in name)
    return update.change(name, update.target.read(name)).values


def test_rows_have_the_targets_norms_and_placebos_differ(merge: Any) -> None:
    updates = {"fused": merge.at(0.3, None)} | {name: at(0.3, None) for name, at in merge.placebos.items()}
    assert set(merge.placebos) == set(PLACEBOS) == set(merge.claims)
    found = {name: weight(update) for name, update in updates.items()}
    own = merge.at(0.3, None).target.read("model.layers.0.mlp.up_proj.weight")
    for name, W in found.items():
        assert name == "truncated" or torch.allclose(W.norm(dim=1), own.norm(dim=1), rtol=1e-4), name
    assert len({W.numpy().tobytes() for W in found.values()}) == len(found)


def test_the_autoencoder_alone_is_the_limit_of_small_strengths_and_no_strength_changes_nothing(merge: Any) -> None:
    alone = weight(merge.placebos["reconstructed"](0.3, None))
    near = weight(merge.at(1e-6, None))
    assert torch.allclose(alone, near, atol=1e-4) and not torch.allclose(alone, weight(merge.at(0.3, None)), atol=1e-4)
    assert merge.at(0.0, None).names == () and merge.at(0.3, {"up": 1.0}).names == (
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    )


def test_noise_is_as_far_as_the_source(merge: Any) -> None:
    update = merge.at(1.0, None)
    latents, matrix = update.latents, next(iter(update.latents.matrices()))
    target, carried, noise = (latents.mixed(what, matrix, 1.0) for what in ("reconstructed", "carried", "noise"))
    assert float((noise - target).norm()) == pytest.approx(float((carried - target).norm()), rel=1e-4)


def test_the_source_itself_as_target_is_met_at_no_distance(mapping: dict[str, Any], tmp_path: Path) -> None:
    """A model merged with itself: the maps are the identity, so that every strength is the reconstruction."""
    recipe = asked(mapping, source=mapping["target"], output=str(tmp_path / "run"))
    run = RunDir.create(recipe.output)
    pipeline.run(recipe, run, lambda event: None)
    report = json.loads((run.path / "report.json").read_text())
    assert max(row["latent_distance"] for row in report["latents"]) < 1e-5
    assert max(row["moved"] for row in report["latents"]) < 1e-3
    scores = {row["model"]: row["bits_per_byte"] for row in report["scores"]}
    assert scores["fused"] == pytest.approx(scores["reconstructed"], abs=1e-4)


def test_tensors_beside_projections_are_the_targets(mapping: dict[str, Any], run: RunDir) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run.model, Path(mapping["target"])))
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert len(changed) == 14 and all(name.endswith("_proj.weight") for name in changed)


def test_the_report_tells_of_the_autoencoder(run: RunDir) -> None:
    report = json.loads((run.path / "report.json").read_text())
    moments = report["autoencoder"]["moments"]
    last = [moment for moment in moments if moment["phase"] == moments[-1]["phase"]]
    assert report["autoencoder"]["chosen"] == min(last, key=lambda moment: moment["bits_per_byte"])["step"]
    assert {row["against"] for row in report["contrasts"]} == set(PLACEBOS)
    assert "placebos" in report["verdict"]["headline"] and "both" not in report["verdict"]["headline"]
    assert '<section id="latents">' in (run.path / "report.html").read_text("utf-8")
    assert "LS-Merge" in (run.model / "README.md").read_text("utf-8")


def test_a_bures_map_without_enough_chunks_is_skipped_and_said(mapping: dict[str, Any], tmp_path: Path) -> None:
    few = {"chunk": 256, "projections": ["k"]}
    recipe = asked(mapping, few, output=str(tmp_path / "run"))
    run = RunDir.create(recipe.output)
    pipeline.run(recipe, run, lambda event: None)
    report = json.loads((run.path / "report.json").read_text())
    assert all(row["bures"] is None for row in report["latents"])
    assert any("Bures map is skipped in target layers [0, 1]" in warning["message"] for warning in report["warnings"])


def test_rows_and_depth_by_the_other_rules(mapping: dict[str, Any], tmp_path: Path) -> None:
    recipe = asked(
        mapping, {"rows": "barycentric", "depth": "first", "bures": False, "controls": ["noise"], "row_norms": False},
        fusion={"layers": [1]}, output=str(tmp_path / "run"),
    )  # fmt: skip
    run = RunDir.create(recipe.output)
    pipeline.run(recipe, run, lambda event: None)
    report = json.loads((run.path / "report.json").read_text())
    assert {(row["layer"], row["source"]) for row in report["latents"]} == {(1, 1)}
    assert report["verdict"]["beats_placebos"] is False, "one of five placebos is no claim"
    assert "only 1 of 5 placebos" in report["verdict"]["headline"] or "does not beat" in report["verdict"]["headline"]
    assert not any(warning["where"] == "encode" for warning in report["warnings"])


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({}, {"fusion": {"norm": "keep"}}, "fusion.norm: keep: found with method: ls_merge, where ls_merge.row_norms"),
        ({}, {"fusion": {"layers": [7]}}, "fusion.layers: found [7], expected layers from 0 to 1 of the target"),
        ({"rows": "barycentric", "chunk": 4, "projections": ["up"]}, {}, ""),
    ],
)
def test_what_does_not_fit_is_refused(
    mapping: dict[str, Any], options: dict[str, Any], changes: dict[str, Any], said: str, monkeypatch: Any
) -> None:
    from tmerge_tui.engine.methods.ls_merge import stage

    monkeypatch.setattr(stage, "PLAN", 10)
    problems = check(asked(mapping, options, **changes))
    expected = said or "ls_merge.rows: barycentric matches the 384 chunks of a matrix by an exact plan"
    assert any(problem.startswith(expected) for problem in problems), problems


def test_a_cpu_that_would_take_days_is_refused_with_the_estimate(
    mapping: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "QUICK", 0.0)
    monkeypatch.setattr(needs, "DAY", 1e-9)
    with pytest.raises(CheckError, match=r"autoencoder takes about .+ on this CPU .+ passes over the chunks"):
        prepare(asked(mapping))
    monkeypatch.setattr(preflight, "QUICK", 1e14)
    prepare(asked(mapping))  # so little work is not even asked about
    monkeypatch.setattr(preflight, "QUICK", 0.0)
    monkeypatch.setattr(needs, "DAY", 1e9)
    prepare(asked(mapping))


def test_the_estimate_grows_with_what_is_trained(mapping: dict[str, Any]) -> None:
    def of(**options: Any) -> Any:
        return prepare(asked(mapping, options)).estimate

    small = of()
    assert small.work["reading"] == 0 < small.work["autoencoder"] and "transport" not in small.memory
    assert of(epochs=60).work["autoencoder"] > 4 * small.work["autoencoder"]
    assert of(width=64).memory["autoencoder"] > small.memory["autoencoder"]
    assert of(controls=[]).disk_bytes < small.disk_bytes


def test_rank_is_truncated_to_the_error() -> None:
    torch.manual_seed(0)
    W = torch.randn(12, 8)
    for error in (0.0, 0.3, 0.7):
        found = truncated(W, error)
        assert float((found - W).norm() / W.norm()) <= error + 1e-6
    values = torch.linalg.svdvals(W)
    one_less = float(values[-1] / W.norm())
    assert torch.linalg.matrix_rank(truncated(W, one_less * 1.001)) == 7


def test_a_row_without_direction_stays_without() -> None:
    W, own = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert torch.allclose(with_row_norms(W, own), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
