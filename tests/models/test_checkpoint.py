"""Checkpoints against the safetensors library, byte for byte, and against damaged files."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny import make_model
from tmerge_tui.errors import ModelError, NumericsError, StorageError
from tmerge_tui.models.checkpoint import Checkpoint, copy_bytes, patch_checkpoint
from tmerge_tui.models.weight_files import INDEX, WEIGHTS

Q = "model.layers.0.self_attn.q_proj.weight"


def ignore(_: int) -> None:
    pass


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


@pytest.fixture
def single(made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made["single"], tmp_path / "model")


@pytest.fixture
def sharded(made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made["sharded"], tmp_path / "model")


def test_reads_what_the_library_reads(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    seen = set()
    for file in sorted(folder.glob("*.safetensors")):
        for name, expected in load_file(file).items():
            seen.add(name)
            info = checkpoint.info(name)
            assert (info.file, info.dtype, info.shape) == (file, expected.dtype, tuple(expected.shape))
            assert torch.equal(checkpoint.read(name), expected)
    assert seen == set(checkpoint.names)
    assert checkpoint.bytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def test_offsets_are_absolute(single: Path) -> None:
    info = Checkpoint(single).info(Q)
    data = (single / WEIGHTS).read_bytes()[info.start : info.end]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32).view(32, 32), Checkpoint(single).read(Q))


@pytest.mark.parametrize(
    "rows",
    [slice(3, 9), slice(None, None, 5), slice(30, 99), slice(4, 4), [0, 1, 2, 7, 31], [5, 5, 2], [-1], []],
    ids=str,
)
def test_rows_are_those_of_the_whole_tensor(folder: Path, rows: slice | list[int]) -> None:
    whole = Checkpoint(folder).read(Q)
    wanted = rows if isinstance(rows, slice) else torch.tensor(rows, dtype=torch.int64)
    part = Checkpoint(folder).read(Q, wanted)
    assert torch.equal(part, whole[wanted])
    assert part.dtype == whole.dtype


def test_rows_read_only_their_bytes(single: Path) -> None:
    checkpoint = Checkpoint(single)
    info = checkpoint.info(Q)
    # everything of the tensor but rows 4 and 5 is gone: only these can still be read
    with open(single / WEIGHTS, "rb+") as stream:
        stream.truncate(info.start + 6 * 32 * 4)
    assert checkpoint.read(Q, slice(4, 6)).shape == (2, 32)
    with pytest.raises(ModelError, match="cut while in use"):
        checkpoint.read(Q)


def test_row_that_is_not_there(single: Path) -> None:
    with pytest.raises(IndexError, match="has 32 rows"):
        Checkpoint(single).read(Q, torch.tensor([1, 32]))


def test_scalars_empty_tensors_and_unknown_names(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor(2.5), "b": torch.empty(0, 3), "c": torch.tensor([True, False])}
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path)
    for name, expected in tensors.items():
        assert torch.equal(checkpoint.read(name), expected)
    with pytest.raises(IndexError, match="scalar"):
        checkpoint.read("a", slice(1))
    with pytest.raises(ModelError, match="no tensor 'd'"):
        checkpoint.read("d")


def test_fingerprint_changes_with_config_and_weights(folder: Path) -> None:
    first = Checkpoint(folder).fingerprint()
    assert Checkpoint(folder).fingerprint() == first
    (folder / "tokenizer.json").write_text("{}")  # no weight, no config
    assert Checkpoint(folder).fingerprint() == first
    file = Checkpoint(folder).weight_files[-1]
    os.utime(file, ns=(1, 1))
    second = Checkpoint(folder).fingerprint()
    assert second != first
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert Checkpoint(folder).fingerprint() not in (first, second)


def test_other_files(folder: Path) -> None:
    (folder / "code" / "deep").mkdir(parents=True)
    (folder / ".cache").mkdir()
    extra = ["code/deep/modeling.py", ".gitattributes", ".cache/lock", "consolidated.safetensors", "pytorch_model.bin"]
    extra += ["model.gguf", "pytorch_model.bin.index.json"]
    for name in extra:
        (folder / name).write_text("x")
    names = {str(path.relative_to(folder)) for path in Checkpoint(folder).other_files}
    assert {"config.json", "tokenizer.json", "code/deep/modeling.py", ".gitattributes"} <= names
    assert not names & set(extra[2:])
    assert (INDEX in names) == (folder / INDEX).exists()
    assert not any(name.endswith(".safetensors") for name in names)


def test_link_to_nothing(single: Path) -> None:
    (single / "vocab.txt").symlink_to("gone")
    with pytest.raises(ModelError, match=r"vocab\.txt is a link to nothing"):
        _ = Checkpoint(single).other_files


# -- damaged folders ---------------------------------------------------------------------------------------------------


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        Checkpoint(tmp_path / "nothing")


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        Checkpoint(single)
    (single / "model-q4.gguf").write_text("x")
    with pytest.raises(ModelError, match="GGUF"):
        Checkpoint(single)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ("pytorch_model.bin", "convert once"),
        ("m.gguf", "GGUF"),
        ("adapter.safetensors", "adapter"),
        (None, "no weights"),
    ],
)
def test_no_safetensors(single: Path, left: str | None, message: str) -> None:
    (single / WEIGHTS).unlink()
    if left:
        (single / left).write_text("x")
    with pytest.raises(ModelError, match=message):
        Checkpoint(single)


def test_missing_shard(sharded: Path) -> None:
    file = Checkpoint(sharded).weight_files[1]
    file.unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of .*{file.name}"):
        Checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../model.safetensors"}}'])
def test_bad_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(ModelError, match=INDEX):
        Checkpoint(sharded)


def test_index_names_a_tensor_that_no_shard_holds(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="ghost"):
        Checkpoint(sharded)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1], ids=str)
def test_cut_file(folder: Path, keep: int) -> None:
    file = Checkpoint(folder).weight_files[-1]
    with open(file, "rb+") as stream:
        stream.truncate(keep if keep >= 0 else file.stat().st_size + keep)
    with pytest.raises(ModelError, match="cut"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "entry",
    [
        "not json",
        "[1]",
        '{"a": 3}',
        '{"a": {"dtype": "F32", "shape": [2]}}',
        '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}',
        '{"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        "{}",
    ],
)
def test_damaged_header(tmp_path: Path, entry: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    head = entry.encode()
    (tmp_path / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    with pytest.raises(ModelError) as caught:
        Checkpoint(tmp_path)
    assert WEIGHTS in caught.value.found


def test_no_tensor_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="no tensor at all"):
        Checkpoint(tmp_path)


def test_check_finite(single: Path) -> None:
    checkpoint = Checkpoint(single)
    steps: list[int] = []
    checkpoint.check_finite(checkpoint.names, steps.append)
    assert sum(steps) == sum(checkpoint.info(name).bytes for name in checkpoint.names)
    tensors = load_file(single / WEIGHTS)
    tensors[Q][3, 4], tensors[Q][9, 9] = float("nan"), float("inf")
    save_file(tensors, single / WEIGHTS)
    with pytest.raises(NumericsError, match=f"{Q} of .* holds 2 NaN or Inf"):
        Checkpoint(single).check_finite(checkpoint.names, ignore)


# -- patching ----------------------------------------------------------------------------------------------------------


def same_files(a: Path, b: Path) -> bool:
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file())
    return all(filecmp.cmp(a / name, b / name, shallow=False) for name in names)


def test_no_patch_and_identity_patch_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    target = Checkpoint(folder)
    patch_checkpoint(target, tmp_path / "none", {}, ignore)
    patch_checkpoint(target, tmp_path / "same", {Q: lambda W: W.float() * 1.0}, ignore)
    assert same_files(folder, tmp_path / "none")
    assert same_files(folder, tmp_path / "same")


def test_exactly_the_patched_rows_differ(folder: Path, tmp_path: Path) -> None:
    target = Checkpoint(folder)
    rows = torch.tensor([1, 5, 30])

    def patch(W: torch.Tensor) -> torch.Tensor:
        W = W.float()
        W[rows] += 1.0
        return W

    steps: list[int] = []
    patch_checkpoint(target, tmp_path / "out", {Q: patch}, steps.append)
    assert sum(steps) == copy_bytes(target, [Q])
    result = Checkpoint(tmp_path / "out")
    assert result.names == target.names
    for name in target.names:
        before, after = target.read(name), result.read(name)
        assert before.dtype == after.dtype
        changed = (before != after).reshape(before.shape[0], -1).any(dim=1).nonzero().flatten()
        assert changed.tolist() == (rows.tolist() if name == Q else [])
    info = target.info(Q)
    for file in folder.iterdir():
        old, new = file.read_bytes(), (tmp_path / "out" / file.name).read_bytes()
        differing = [i for i in range(len(old)) if old[i] != new[i]]
        assert len(old) == len(new)
        assert all(info.start <= i < info.end for i in differing) if file == info.file else not differing
    assert torch.equal(result.read(Q), patch(target.read(Q)).to(info.dtype))


def test_result_loads_in_transformers_with_nothing_missing(folder: Path, tmp_path: Path) -> None:
    patch_checkpoint(Checkpoint(folder), tmp_path / "out", {Q: lambda W: W * 2}, ignore)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with safe_open(Checkpoint(folder).info(Q).file, "pt") as file:
        assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, 2 * file.get_tensor(Q).to(model.dtype))


def test_links_become_files(single: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in single.iterdir():
        (snapshot / file.name).symlink_to(file)
    patch_checkpoint(Checkpoint(snapshot), tmp_path / "out", {Q: lambda W: W + 1}, ignore)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert not torch.equal(Checkpoint(tmp_path / "out").read(Q), Checkpoint(single).read(Q))


def test_earlier_result_is_replaced_at_the_end_only(single: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    target = Checkpoint(single)
    patch_checkpoint(target, out, {Q: lambda W: W + 1}, ignore)
    (out / "leftover.txt").write_text("of the earlier run")
    first = (out / WEIGHTS).read_bytes()

    def fail(W: torch.Tensor) -> torch.Tensor:
        assert (out / WEIGHTS).read_bytes() == first
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch_checkpoint(target, out, {Q: fail}, ignore)
    assert (out / WEIGHTS).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    (tmp_path / "out.part").mkdir()  # of a run that was killed
    patch_checkpoint(target, out, {Q: lambda W: W + 2}, ignore)
    assert not (out / "leftover.txt").exists()
    assert (out / WEIGHTS).read_bytes() != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_patch_that_is_not_finite(single: Path, tmp_path: Path, bad: float) -> None:
    with pytest.raises(NumericsError, match=f"{Q}: fused values hold NaN or Inf"):
        patch_checkpoint(Checkpoint(single), tmp_path / "out", {Q: lambda W: W * bad}, ignore)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_patch_that_overflows_its_dtype(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", dtype=torch.float16)
    with pytest.raises(NumericsError, match=f"{Q}: 1e[+]05 does not fit float16"):
        patch_checkpoint(Checkpoint(folder), tmp_path / "out", {Q: lambda W: W.float() * 0 + 1e5}, ignore)


def test_patch_of_another_shape_or_name(single: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="new shape"):
        patch_checkpoint(Checkpoint(single), tmp_path / "out", {Q: lambda W: W[:3]}, ignore)
    with pytest.raises(ModelError, match="no tensor 'x'"):
        patch_checkpoint(Checkpoint(single), tmp_path / "out", {"x": lambda W: W}, ignore)


def test_full_disk(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk full"):
        patch_checkpoint(Checkpoint(single), tmp_path / "out", {}, ignore)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_unwritable_output(single: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        patch_checkpoint(Checkpoint(single), tmp_path / "file" / "out", {}, ignore)


def test_output_over_the_target(single: Path) -> None:
    before = sorted(single.iterdir())
    for out in (single, single / "out", single.parent):
        with pytest.raises(StorageError, match="overlap"):
            patch_checkpoint(Checkpoint(single), out, {}, ignore)
    assert sorted(single.iterdir()) == before
