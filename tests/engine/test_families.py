"""Every family as a target. References: the target's own bytes, its tensors split by hand, stock transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import by_hand
from tests.engine.merging import CPU, Bench, check_changes, check_loads, tensors_of
from tests.families import FAMILIES, make_family
from tests.models.test_pickled import pickle_weights
from tests.tiny import make_text
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.transport_merge.fusion import apply
from tmerge_tui.engine.weights.install import installed
from tmerge_tui.events import Event, Warned
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.loading import load_model
from tmerge_tui.recipe import PROJECTIONS, make_recipe
from tmerge_tui.run_folder import RunDir

SOURCE = "phi3"  # has all seven kinds


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("family", FAMILIES)
def test_fusion_changes_what_it_names_and_nothing_else(bench: Bench, family: str, tmp_path: Path) -> None:
    merged = bench.merge(family, SOURCE, 0.4, tmp_path / "out")
    assert set(FAMILIES[family].kinds) <= set(merged.matching.kinds)
    check_changes(family, merged)
    check_loads(merged.folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_zero_gives_the_bytes_back(bench: Bench, family: str, tmp_path: Path) -> None:
    merged = bench.merge(family, SOURCE, 0.0, tmp_path / "out")
    files = [file for file in merged.target.iterdir() if file.is_file()]
    assert sum(file.suffix == ".safetensors" for file in files) == 1
    for file in files:
        assert (merged.folder / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "falcon_40b", "codegen", "gemma3"])
@pytest.mark.parametrize("norm", ["free", "keep"])
def test_the_values_are_those_of_the_formula(bench: Bench, family: str, norm: str, tmp_path: Path) -> None:
    """Each projection by hand: W + alpha mask (moved - W), so projections of one tensor do not disturb each other."""
    merged = bench.merge(family, SOURCE, 0.4, tmp_path / "out", norm)
    before, after = tensors_of(merged.target), tensors_of(merged.folder)
    for fused in merged.fusion:
        W, b = by_hand.split(family, before, fused.layer)[fused.kind]
        expected, bias = apply(W, b, fused, 0.4, norm)
        found = by_hand.split(family, after, fused.layer)[fused.kind]
        assert torch.equal(found[0], expected)
        assert bias is None or torch.equal(found[1], bias)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "falcon_40b", "opt", "mixtral", "gemma3"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_patched_model_is_the_written_one(bench: Bench, family: str, streamed: bool, tmp_path: Path) -> None:
    """What is measured is what is written, and afterwards the target is back, bit for bit."""
    merged = bench.merge(family, SOURCE, 0.4, tmp_path / "out", "keep")
    facts = bench.open("target", family).facts
    budget = facts.weight_bytes(torch.float32) - facts.largest_layer_bytes // 2 if streamed else None

    def load(facts: ModelFacts, memory: int | None) -> Any:
        return load_model(facts, CPU, torch.float32, memory, lambda event: None)

    target, written = load(facts, budget), load(replace(facts, folder=merged.folder), None)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        own, expected = target(input_ids=ids).logits, written(input_ids=ids).logits
        assert not torch.equal(own, expected)
        with installed(target, merged.update):
            torch.testing.assert_close(target(input_ids=ids).logits, expected, rtol=0, atol=0)
        assert torch.equal(target(input_ids=ids).logits, own)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox"])
def test_bin_checkpoints_merge_to_the_same_tensors(bench: Bench, family: str, tmp_path: Path) -> None:
    """As target and as source; references: the same models in safetensors."""
    other = Bench(tmp_path)
    for role, name in (("target", family), ("source", SOURCE)):
        shutil.copytree(bench.path(role, name), other.path_of(role, name))
        pickle_weights(other.path_of(role, name))
    seen: list[Event] = []
    merged = other.merge(family, SOURCE, 0.4, tmp_path / "out", emit=seen.append)
    expected = tensors_of(bench.merge(family, SOURCE, 0.4, tmp_path / "expected").folder)
    found = tensors_of(merged.folder)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    check_loads(merged.folder)
    assert [e.message for e in seen if isinstance(e, Warned) and ".bin" in e.message]
    unchanged = tensors_of(other.merge(family, SOURCE, 0.0, tmp_path / "zero").folder)
    before = tensors_of(bench.path("target", family))
    assert unchanged.keys() == before.keys() and all(torch.equal(unchanged[name], before[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_reach_the_activations(bench: Bench, family: str, tmp_path: Path) -> None:
    """Samples of different lengths in one batch, against each of them alone."""
    together, alone = bench.open("source", family).activations, Bench(tmp_path, batch_size=1)
    shutil.copytree(bench.path("source", family), alone.path_of("source", family))
    apart = alone.open("source", family).activations
    for layer in range(together.layers):
        for side in together.layout.sides(layer, PROJECTIONS):
            torch.testing.assert_close(together.side(layer, side), apart.side(layer, side), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("target", "source"), [("gpt_neox", "gpt2"), ("qwen2_vl", "mixtral"), ("falcon_40b", "phi3")])
def test_the_whole_pipeline(target: str, source: str, tmp_path: Path) -> None:
    """From recipe to report: preflight, both models, plans, the written model tried, placebos, verdict."""
    for role, family in (("target", target), ("source", source)):
        make_family(tmp_path / role, family)
    mapping = {
        "source": str(tmp_path / "source"),
        "target": str(tmp_path / "target"),
        "calibration": {
            "path": str(make_text(tmp_path / "text.txt", 24)),
            "samples": 16,
            "holdout": 4,
            "max_length": 24,
        },
        "transport": {"projections": list(PROJECTIONS), "epsilon": 0.5},
        "fusion": {"alpha": 0.3, "k": 8, "r": 8, "coupling": "barycentric"},
        "evaluation": {"resamples": 100, "prompts": ["Two rivers"]},
        "output": str(tmp_path / "run"),
        "device": "cpu",
    }
    run = RunDir.create(tmp_path / "run")
    pipeline.run(make_recipe(mapping), run, lambda event: None)
    report = json.loads((run.path / "report.json").read_text())
    assert {score["model"] for score in report["scores"]} == {"target", "source", "fused", "shrink", "permuted"}
    before, after = tensors_of(tmp_path / "target"), tensors_of(run.model)
    touched = {name for name in before if not torch.equal(before[name], after[name])}
    assert touched == set(report["tensors"]["fused"]) and touched
    assert len(touched) + report["tensors"]["copied"] == len(before)
    both = set(FAMILIES[target].kinds) & set(FAMILIES[source].kinds)
    assert {line["kind"] for line in report["projections"]} == both
    lacking = set(PROJECTIONS) - both
    assert lacking == {note.split(":")[0] for note in report["skipped"] if "skipped, no" in note}
    check_loads(run.model)
