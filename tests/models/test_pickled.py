"""Checkpoints in PyTorch's .bin format, against the same tensors in safetensors; and files that must not be trusted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.tiny import make_model
from tmerge_tui.errors import ModelError, NumericsError
from tmerge_tui.models.checkpoint import Checkpoint, copy_bytes, patch_checkpoint
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.loading import load_model
from tmerge_tui.models.weight_files import INDEX, PICKLED, PICKLED_INDEX

Q = "model.layers.0.self_attn.q_proj.weight"


def pickle_weights(folder: Path) -> dict[str, Tensor]:
    """Exchanges a folder's safetensors files for .bin files with the same tensors, shard for shard."""
    everything = {}
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        everything.update(tensors)
        name = PICKLED if file.name == "model.safetensors" else f"pytorch_{file.stem}.bin"
        torch.save(tensors, folder / name)
        file.unlink()
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = {
            name: f"pytorch_{file.removesuffix('.safetensors')}.bin" for name, file in index["weight_map"].items()
        }
        (folder / PICKLED_INDEX).write_text(json.dumps(index))
        (folder / INDEX).unlink()
    return everything


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "single": make_model(root / "single"),
        "sharded": make_model(root / "sharded", "qwen2", dtype=torch.bfloat16, max_shard_size="20KB"),
    }


@pytest.fixture(params=["single", "sharded"])
def folder(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made[request.param], tmp_path / "model")


def test_reads_the_same_tensors(folder: Path) -> None:
    expected = pickle_weights(folder)
    checkpoint = Checkpoint(folder)
    assert set(checkpoint.names) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert (checkpoint.info(name).dtype, checkpoint.info(name).shape) == (tensor.dtype, tuple(tensor.shape))
        rows = torch.tensor([len(tensor) - 1, 0])
        assert torch.equal(checkpoint.read(name, rows), tensor[rows])
        assert torch.equal(checkpoint.read(name, slice(1, 3)), tensor[1:3])
    facts = read_facts(folder, "m")
    assert facts.dtype == str(expected[Q].dtype).removeprefix("torch.") and len(facts.layout.projections) == 14


def test_loads_as_a_model(folder: Path) -> None:
    expected = pickle_weights(folder)
    model = load_model(read_facts(folder, "m"), torch.device("cpu"), torch.float32, None, lambda event: None)
    assert torch.equal(model.get_submodule(Q.removesuffix(".weight")).weight, expected[Q].float())


def test_is_written_as_safetensors_with_everything_else_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = pickle_weights(folder)
    checkpoint, steps = Checkpoint(folder), []
    patch_checkpoint(checkpoint, tmp_path / "out", {Q: lambda W: W.float() + 1}, steps.append)
    assert sum(steps) == copy_bytes(checkpoint, [Q])
    after = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], (tensor.float() + 1).to(tensor.dtype) if name == Q else tensor)
    assert not list((tmp_path / "out").glob("*.bin*"))
    for file in folder.iterdir():
        if ".bin" not in file.name:
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    written = Checkpoint(tmp_path / "out")
    assert len(written.weight_files) == len(checkpoint.weight_files)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_tied_and_transposed_tensors(made: dict[str, Path], tmp_path: Path) -> None:
    """What share one storage in the file, and views that are not contiguous."""
    folder = shutil.copytree(made["single"], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    shared = {**tensors, "copy": tensors[Q], "turned": tensors[Q].T}
    torch.save(shared, folder / PICKLED)
    (folder / "model.safetensors").unlink()
    checkpoint = Checkpoint(folder)
    assert torch.equal(checkpoint.read("turned"), tensors[Q].T)
    assert torch.equal(checkpoint.read("turned", slice(2, 5)), tensors[Q].T[2:5])
    patch_checkpoint(checkpoint, tmp_path / "out", {Q: lambda W: W * 2}, lambda count: None)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after["copy"], tensors[Q]) and torch.equal(after["turned"], tensors[Q].T)
    assert torch.equal(after[Q], tensors[Q] * 2)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("sprung",)


def test_code_in_a_file_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickle_weights(folder)
    monkeypatch.chdir(tmp_path)
    file = next(folder.glob("*.bin"))
    torch.save({Q: torch.zeros(2), "trap": Trap()}, file)
    with pytest.raises(ModelError, match="holds more than tensors"):
        Checkpoint(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"step": 3}, "no table of tensors"), ({"model": {"w": torch.zeros(2)}}, "no table of tensors")],
)
def test_other_pickles(folder: Path, content: object, message: str) -> None:
    pickle_weights(folder)
    torch.save(content, next(folder.glob("*.bin")))
    with pytest.raises(ModelError, match=message):
        Checkpoint(folder)


def test_old_and_cut_files(folder: Path) -> None:
    expected = pickle_weights(folder)
    file = next(folder.glob("*.bin"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cannot be read|PyTorch 1\.6"):
        Checkpoint(folder)
    torch.save(expected, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"PyTorch 1\.6[\s\S]*convert once"):
        Checkpoint(folder)


def test_nan_in_a_weight_is_named(folder: Path) -> None:
    pickle_weights(folder)
    checkpoint = Checkpoint(folder)
    file = checkpoint.info(Q).file
    tensors = torch.load(file)
    tensors[Q][0, 0] = torch.nan
    torch.save(tensors, file)
    with pytest.raises(NumericsError, match=Q):
        Checkpoint(folder).check_finite([Q], lambda count: None)
