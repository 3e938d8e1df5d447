"""Twelve families into twelve, each with a layout of its own: every pair is aligned, fused, folded and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.merging import Bench, check_changes, check_loads
from tests.families import FAMILIES

LAYOUTS = {
    "llama": "plain, shared keys and values",
    "qwen3": "heads wider than the model, q_norm and k_norm",
    "gemma3": "text part of a model that sees",
    "lfm2": "hybrid, w1 w2 w3",
    "opt": "biased, fc1 fc2 on the layer itself",
    "phi3": "all q, all k, all v; gate and up in one tensor",
    "gpt2": "in x out",
    "gpt_neox": "q, k, v head by head; embed_out",
    "falcon_7b": "one key and value for all",
    "falcon_40b": "q, k, v by key-value groups",
    "codegen": "split over four cores",
    "mixtral": "attention of a mixture of experts",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("target", LAYOUTS)
def test_every_source_merges_into(bench: Bench, target: str, tmp_path: Path) -> None:
    for source in LAYOUTS:
        merged = bench.merge(target, source, 0.3, tmp_path / source)
        both = set(FAMILIES[target].kinds) & set(FAMILIES[source].kinds)
        assert set(merged.matching.kinds) == both
        for kind in set(FAMILIES[target].kinds) ^ set(FAMILIES[source].kinds):
            lacking = "source" if kind in FAMILIES[target].kinds else "target"
            assert f"{kind}: skipped, no {kind} projection in the {lacking}" in merged.matching.notes
        check_changes(target, merged)
        check_loads(merged.folder)
