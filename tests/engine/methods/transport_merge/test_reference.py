"""Source minus its reference, added to the target. References: differences written into the files by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.methods.transport_merge.plans import Pair, identity_plan, noisy_biases
from tests.engine.pair import make_pair, recipe_of
from tests.tiny import make_model, rewritten
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.transport_merge.fuse import fuse
from tmerge_tui.engine.methods.transport_merge.fusion import FusedUpdate, Fusion
from tmerge_tui.engine.preflight.check import check
from tmerge_tui.engine.report.verdict import judge
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.pair import Pair as Both
from tmerge_tui.recipe import PROJECTIONS
from tmerge_tui.run_folder import RunDir

P = torch.eye(2)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two Qwen2 of one shape with biases, channel i matched with channel i and layer l with layer l."""
    target, source = (make_model(tmp_path / name, "qwen2", seed=seed) for seed, name in enumerate(("target", "source")))
    for folder in (target, source):
        noisy_biases(folder)
    return Pair.make(tmp_path, target, source, P, identity_plan)


def fused(pair: Pair, reference: Path, run: RunDir, permuted: bool = False, **fusion: Any) -> Fusion:
    recipe = pair.recipe(k="all", r=None, coupling="barycentric", **fusion)
    return fuse(
        pair.transports, Both(target=pair.target, source=pair.source), pair.layouts, PROJECTIONS, recipe.fusion, 3, 0,
        run, pair.events.append, permuted, reference=Checkpoint(reference),
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("norm", ["free", "keep"])
def test_a_source_that_is_its_own_reference_changes_no_bit(pair: Pair, tmp_path: Path, norm: str) -> None:
    run = RunDir.create(tmp_path / "own")
    for permuted in (False, True):
        update = FusedUpdate(fused(pair, pair.source.folder, run, permuted), pair.target, 0.7, norm)
        assert update.names
        for name in update.names:
            stored = pair.target.read(name)
            if norm == "free":
                assert torch.equal(update.change(name, stored).applied(stored), stored)
            else:
                torch.testing.assert_close(update.change(name, stored).applied(stored), stored, rtol=1e-6, atol=1e-7)


def test_a_known_difference_is_added_at_its_strength(pair: Pair, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)

    def before(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor - 0.01 * torch.randn(tensor.shape, generator=generator)

    base = rewritten(pair.source.folder, tmp_path / "base", before)
    fusion = fused(pair, base, RunDir.create(tmp_path / "added"))
    update = FusedUpdate(fusion, pair.target, 0.5, "free")
    ours, theirs = load_file(base / "model.safetensors"), load_file(pair.source.folder / "model.safetensors")
    checked = 0
    for name in update.names:
        stored = pair.target.read(name)
        expected = stored + 0.5 * (theirs[name] - ours[name])
        torch.testing.assert_close(update.change(name, stored).applied(stored), expected, rtol=1e-5, atol=1e-6)
        checked += name.endswith("bias")
    assert checked == 6, "biases of q, k and v in both layers too"
    for one in fusion:
        weight = pair.layouts.source.get(one.layer, one.kind).weight  # type: ignore[union-attr]
        size = float((theirs[weight] - ours[weight]).norm())
        assert one.transported_norm == pytest.approx(size, rel=1e-4), "the report has the difference's size"


def test_the_placebo_adds_the_same_difference_elsewhere(pair: Pair, tmp_path: Path) -> None:
    base = rewritten(pair.source.folder, tmp_path / "base", lambda name, tensor: tensor * 0.9)
    run = RunDir.create(tmp_path / "placebo")
    real, placebo = (fused(pair, base, run, permuted) for permuted in (False, True))
    for one, other in zip(real, placebo, strict=True):
        assert other.transported_norm == pytest.approx(one.transported_norm, rel=1e-5)
        assert not torch.allclose(one.moved, other.moved, atol=1e-4)
    plain = pair.fuse(PROJECTIONS, k="all", r=None, coupling="barycentric")
    assert plain.key != real.key, "and pieces of their own"


@pytest.fixture(scope="module")
def mapping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def test_a_whole_run_says_what_it_carried(mapping: dict[str, Any], tmp_path: Path) -> None:
    base = rewritten(Path(mapping["source"]), tmp_path / "base", lambda name, tensor: tensor * 0.99)
    recipe = recipe_of(mapping, output=str(tmp_path / "run"), fusion={"reference": str(base)})
    run = RunDir.create(recipe.output)
    pipeline.run(recipe, run, lambda event: None)
    text = (run.path / "report.md").read_text("utf-8")
    assert "what is carried is the source minus base" in text and "a task vector" in text
    card = (run.model / "README.md").read_text("utf-8")
    assert "| task vector: source minus | base |" in card and str(tmp_path) not in card


def test_a_reference_of_another_shape_or_place_is_refused(mapping: dict[str, Any], tmp_path: Path) -> None:
    def problems(reference: Path | str, **changes: Any) -> list[str]:
        return check(recipe_of(mapping, output=str(tmp_path / "run"), fusion={"reference": str(reference)}, **changes))

    (said,) = problems(mapping["target"])
    assert said.startswith("fusion.reference: ") and "is a qwen2, the source" in said and "was tuned from" in said
    source = Path(mapping["source"])
    make_model(tmp_path / "other", "llama", hidden=48, layers=3, heads=4, kv_heads=2, intermediate=80, vocab=400)
    (said,) = problems(tmp_path / "other")
    assert "gate of layer 0 is 80 x 48" in said and "64 x 48 in the source" in said
    (said,) = problems(tmp_path / "nowhere")
    assert said.startswith("fusion.reference: ") and "nowhere" in said
    shutil.copytree(source, tmp_path / "copy")
    assert problems(tmp_path / "copy") == []
    for method in ("ot_fusion", "ls_merge"):
        (said,) = problems(tmp_path / "copy", method=method)
        assert said.startswith(f"fusion.reference: found with method: {method}")


def test_a_small_task_vector_is_no_shrinkage() -> None:
    scores = [
        {"model": "target", "alpha": None, "bits_per_byte": 2.0},
        {"model": "fused", "alpha": 0.1, "bits_per_byte": 1.9},
    ]
    said = " ".join(judge(scores, [], [{"ratio": 1e-3}], norm="added")["sentences"])
    assert "task vector" in said and "shrinkage" not in said
