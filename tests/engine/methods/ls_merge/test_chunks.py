"""Chunks and manifest: the way back gives every bit. Reference: the tensors themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import make_model
from tmerge_tui.engine.methods.ls_merge.chunks import filled, from_chunks, scale_of, to_chunks
from tmerge_tui.engine.methods.ls_merge.manifest import Manifest, read_manifest
from tmerge_tui.errors import NumericsError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import read_facts
from tmerge_tui.recipe import PROJECTIONS
from tmerge_tui.run_folder import RunDir


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_identity_between_gives_back_every_bit(squash: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    W = torch.randn(37, 29) * 10 ** torch.randn(37, 29)  # heavy tails
    W[0], W[1, :5], W[2, 0] = 0, torch.tensor([-0.0, 1e-20, -1e-20, 3e4, -3e4]), 1e-30
    W = W.to(dtype).float()
    chunks = to_chunks(W, 16, scale_of(W), squash)
    assert chunks.shape == (-(-37 * 29 // 16), 16)
    assert torch.equal(bits(from_chunks(chunks, (37, 29), scale_of(W), squash).float()), bits(W))


def test_what_is_filled_up_is_no_weight() -> None:
    W = torch.ones(3, 5)
    chunks = to_chunks(W, 4, 1.0, squash=False)
    mask = filled(torch.arange(4), 15, 4)
    assert mask.sum() == 15 and torch.equal(chunks[mask], torch.ones(15).double()) and not chunks[~mask].any()


def test_a_matrix_of_zeros_has_a_scale() -> None:
    assert scale_of(torch.zeros(2, 2)) == 1.0


@pytest.fixture(params=["llama", "gpt2", "phi3"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    folder = make_model(tmp_path / "model", request.param, hidden=16, intermediate=24)
    facts = read_facts(folder, "model")
    run = RunDir.create(tmp_path / "run")
    return read_manifest(Checkpoint(folder), facts.layout, PROJECTIONS, 12, True, run, lambda now: None)


def test_every_matrix_of_any_layout_is_written_back_to_the_bit(manifest: Manifest) -> None:
    ends = 0
    for matrix in manifest.matrices:
        W = manifest.weight(matrix)
        assert W.shape == (matrix.rows, matrix.columns) and matrix.offset == ends
        ends += matrix.chunks
        assert torch.equal(bits(manifest.write_back(matrix, manifest.chunks(matrix)).float()), bits(W.float()))
    assert {matrix.layer for matrix in manifest.matrices} == {0, 1}


def test_a_second_reading_reads_no_weight(manifest: Manifest, tmp_path: Path) -> None:
    seen: list[bool] = []
    run = RunDir(tmp_path / "run")
    again = read_manifest(manifest.checkpoint, manifest.layout, PROJECTIONS, 12, True, run, seen.append)
    assert again.matrices == manifest.matrices and not any(seen) and seen


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path / "model", "llama", hidden=16)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    layout = read_facts(folder, "model").layout
    with pytest.raises(NumericsError, match=r"up_proj.weight"):
        read_manifest(Checkpoint(folder), layout, ("up",), 12, True, RunDir.create(tmp_path / "run"), lambda now: None)
