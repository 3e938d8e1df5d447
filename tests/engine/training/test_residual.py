"""The frozen residual on every kind of layout. Reference: the same fusion written into the loaded weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.merging import CPU, Bench
from tmerge_tui.engine.training.residual import attach
from tmerge_tui.models.loading import load_model


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "falcon_40b", "opt", "gemma3"])
@pytest.mark.parametrize("norm", ["free", "keep"])
def test_a_model_with_the_residual_is_the_fused_one(tmp_path: Path, family: str, norm: str) -> None:
    bench = Bench(tmp_path)
    merged = bench.merge(family, "phi3", 0.4, tmp_path / "out", norm)
    facts = bench.open("target", family).facts
    ours, written = (
        load_model(f, CPU, torch.float32, None, lambda event: None)
        for f in (facts, replace(facts, folder=merged.folder))
    )
    attached = attach(ours, merged.update)
    assert attached and not any(buffer.requires_grad for residual in attached for buffer in residual.buffers())
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids).logits, written(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
