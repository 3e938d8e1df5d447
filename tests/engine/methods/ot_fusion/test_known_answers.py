"""What has to come out where the answer is known. Reference: the target itself; its copies, in another order and wider,
compute what it computes, so that fused at any strength with one of them it stays what it is, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.methods.ot_fusion.copies import orders_of, permuted_copy, widened
from tests.families import make_family
from tests.tiny import make_text
from tmerge_tui.engine.methods.attention import attention_of
from tmerge_tui.engine.methods.method import Merge
from tmerge_tui.engine.methods.ot_fusion.stage import OtFusionMethod
from tmerge_tui.engine.preflight.check import open_party, prepare
from tmerge_tui.engine.prepared import Prepared
from tmerge_tui.hub.locate import find
from tmerge_tui.recipe import ModelChoice, make_recipe
from tmerge_tui.run_folder import RunDir

IDS = torch.tensor([[5, 9, 40, 8, 3, 77, 21]])


def merged(folder: Path, target: Path, source: Path, **options: Any) -> tuple[Prepared, Merge]:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = make_recipe(
        {
            "source": str(source),
            "target": str(target),
            "calibration": {
                "path": str(make_text(folder / "text.txt", 60)),
                "samples": 50,
                "holdout": 10,
                "max_length": 24,
            },
            "method": "ot_fusion",
            "ot_fusion": options,
            "fusion": {"alpha": 0.3},
            "output": str(folder / "run"),
            "device": "cpu",
        }
    )
    prepared = prepare(recipe)
    return prepared, OtFusionMethod().merge(
        prepared, RunDir.create(recipe.output), lambda event: None, lambda model: None
    )


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS, use_cache=False).logits


def assert_itself(prepared: Prepared, merge: Merge, alpha: float, tolerance: float = 0.0) -> None:
    target, update = prepared.target.checkpoint, merge.at(alpha, None)
    assert set(update.names) == set(target.names)
    for name in update.names:
        stored = target.read(name)
        torch.testing.assert_close(update.change(name, stored).applied(stored), stored, rtol=0, atol=tolerance)


def copy_of(family: str, folder: Path) -> tuple[Path, Path]:
    target = make_family(folder / "target", family)
    party = open_party("target", find(ModelChoice(model=str(target))), False)
    orders = orders_of(party.facts.layout, attention_of(party), party.facts.hidden)
    copy = permuted_copy(target, folder / "copy", party.facts.layout, orders)
    torch.testing.assert_close(logits(copy), logits(target), rtol=1e-3, atol=1e-4)
    return target, copy


FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "olmo2", "phi3", "gpt_neox", "gpt2", "bloom", "glm")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_in_another_order_is_recovered(family: str, tmp_path: Path) -> None:
    prepared, merge = merged(tmp_path, *copy_of(family, tmp_path))
    assert_itself(prepared, merge, 1.0)
    assert_itself(prepared, merge, 0.3)
    target, placebo = prepared.target.checkpoint, merge.placebos["permuted"](1.0, None)
    carried = next(part.data for part in merge.parts(None) if part.key == "projections")
    places = {(p.layer, p.kind) for p in prepared.target.facts.layout.projections}
    assert {(line["layer"], line["kind"]) for line in carried} == places, "nothing is kept by being left out"
    assert not [note for note in merge.notes if "left as it is" in note]
    for p in prepared.target.facts.layout.projections:
        W = p.take(target.read(p.weight))
        assert not torch.allclose(p.take(placebo.change(p.weight, target.read(p.weight)).values), W, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"cost": "weights"},
        {"cost": "weights", "residual": "mean"},
        {"residual": "mean"},
        {"solver": "hard"},
        {"cost": "weights", "solver": "hard", "marginals": "importance"},
        {"marginals": "importance"},
        {"depth": "plan"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_by_any_rule(options: dict[str, Any], tmp_path: Path) -> None:
    prepared, merge = merged(tmp_path, *copy_of("llama", tmp_path), **options)
    if "depth" in options:  # several source layers enter each of the target's, most of them its own
        P = next(part for part in merge.parts(None) if part.key == "layer_plans").data["all"]["P"]
        assert [row.index(max(row)) for row in P] == [0, 1] and all(abs(sum(row) - 1) < 1e-6 for row in P)
    else:
        # masses by importance are sums: what is left of them is rounding
        assert_itself(prepared, merge, 1.0, 1e-5 if options.get("marginals") and "solver" not in options else 0.0)


def test_entropic_plans_come_close_as_epsilon_falls(tmp_path: Path) -> None:
    target, copy = copy_of("llama", tmp_path)
    off = []
    for epsilon in (0.2, 0.02):
        prepared, merge = merged(tmp_path / str(epsilon), target, copy, solver="sinkhorn", epsilon=epsilon)
        update, name = merge.at(1.0, None), "model.layers.1.mlp.down_proj.weight"
        stored = prepared.target.checkpoint.read(name)
        off.append(float((update.change(name, stored).applied(stored) - stored).norm() / stored.norm()))
    assert off[1] < 0.2 < off[0]


@pytest.mark.parametrize("cost", ["activations", "weights"])
@pytest.mark.parametrize("into", ["narrow", "wide"])
def test_a_widened_copy_fuses_back(cost: str, into: str, tmp_path: Path) -> None:
    narrow = make_family(tmp_path / "narrow", "llama", head_dim=8, tie_word_embeddings=False)
    layout = open_party("target", find(ModelChoice(model=str(narrow))), False).facts.layout
    wide = widened(narrow, tmp_path / "wide", layout, heads=4)
    torch.testing.assert_close(logits(wide), logits(narrow), rtol=1e-3, atol=1e-4)
    prepared, merge = merged(tmp_path, *((narrow, wide) if into == "narrow" else (wide, narrow)), cost=cost)
    assert_itself(prepared, merge, 1.0, 1e-6)


def test_placebos_are_no_copies_and_have_the_same_norm(tmp_path: Path) -> None:
    prepared, merge = merged(tmp_path, *copy_of("llama", tmp_path))
    target, permuted, shrunk = (
        prepared.target.checkpoint,
        merge.placebos["permuted"](1.0, None),
        merge.placebos["shrink"],
    )
    for name in permuted.names:
        stored = target.read(name)
        made = permuted.change(name, stored).applied(stored)
        torch.testing.assert_close(made.norm(), stored.norm())
        if stored.ndim > 1:
            assert float((made - stored).norm()) > 0.5 * float(stored.norm())
            torch.testing.assert_close(shrunk(0.25, None).change(name, stored).applied(stored), 0.75 * stored)
    assert set(shrunk(0.25, None).names) == {name for name in target.names if target.read(name).ndim > 1}


def test_one_to_one_leaves_alone_what_is_not_matched(tmp_path: Path) -> None:
    """A target with twice the neurons of its source: half of them keep their rows and columns."""
    target = make_family(tmp_path / "target", "llama", intermediate=96)
    source = make_family(tmp_path / "source", "llama", intermediate=48, seed=1)
    prepared, merge = merged(tmp_path, target, source, solver="hard")
    update = merge.at(1.0, None)

    def kept(name: str, dim: int) -> torch.Tensor:
        stored = prepared.target.checkpoint.read(name)
        return (update.change(name, stored).applied(stored) == stored).all(1 - dim)

    rows, columns = kept("model.layers.0.mlp.up_proj.weight", 0), kept("model.layers.0.mlp.down_proj.weight", 1)
    assert int(rows.sum()) == 48 and torch.equal(rows, columns)


def test_parts_have_strengths_of_their_own(tmp_path: Path) -> None:
    _, merge = merged(tmp_path, *copy_of("llama", tmp_path))
    assert merge.kinds == ("attention", "feed_forward", "norms", "embeddings")
    update = merge.at(0.2, {"norms": 0.5})
    assert update.names and all("norm" in name for name in update.names)
    assert update.key != merge.at(0.2, {"norms": 1.0}).key
