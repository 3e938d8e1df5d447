"""Every family as a target. References: the target's own bytes, its tensors split by hand, stock transformers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import by_hand
from tests.engine.merging import CPU, Bench, check_changes, check_loads, tensors_of
from tests.families import FAMILIES
from tests.models.test_pickled import pickle_weights
from tmerge_tui.engine.fused import apply
from tmerge_tui.engine.patch import patched
from tmerge_tui.events import Event, Warned
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.loading import load_model

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
        with patched(target, merged.fusion, 0.4, "keep"):
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
