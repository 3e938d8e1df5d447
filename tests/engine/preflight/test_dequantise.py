"""Quantised sources are read. References: what gguf itself reads back, and weights that were rounded by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.engine.pair import make_pair, recipe_of
from tests.gguf_files import read_back, write_gguf
from tests.packed_files import KINDS, SAID, as_packed
from tests.tiny import edit_config, make_model, make_tokenizer
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight import dequantise, room
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.engine.preflight.download import download_models
from tmerge_tui.engine.preflight.estimate import unpacked_bytes
from tmerge_tui.errors import MemoryShortage, StorageError
from tmerge_tui.events import Event, StageFinished, StageProgressed, StageStarted, Warned
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.quantised.schemes import scheme_of
from tmerge_tui.run_folder import RunDir

SHAPE: dict[str, Any] = {"hidden": 64, "intermediate": 96, "tie_word_embeddings": False}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    return {**make_pair(tmp_path), "transport": {"projections": ["q"]}, "evaluation": {"controls": []}}


def source_weights(recipe: Any) -> Checkpoint:
    party = download_models(prepare(recipe), lambda event: None).source
    assert party.located.whole and party.facts.folder == party.checkpoint.folder
    return party.checkpoint


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gguf_gives_what_is_left_of_each_tensor(pair: dict[str, Any], tmp_path: Path, kind: str, family: str) -> None:
    folder = make_model(tmp_path / "plain", family, **SHAPE)
    file = write_gguf(folder, tmp_path / f"tiny-{kind}.gguf", kind, family)
    recipe = recipe_of(pair, source=str(file))
    prepared = prepare(recipe)
    assert not prepared.source.located.whole and prepared.source.facts.dtype == {
        "F32": "float32",
        "F16": "float16",
    }.get(kind, "bfloat16")
    assert any(f"GGUF {kind}" in told for told in prepared.warnings)
    text = "Two rivers 你好"
    assert prepared.source.tokenizer(text).input_ids == make_tokenizer(320)(text).input_ids
    read, plain = source_weights(recipe), load_file(folder / "model.safetensors")
    assert set(read.names) == set(plain)
    for name, value in plain.items():
        expected = read_back(value, kind) if value.dim() == 2 else value
        torch.testing.assert_close(read.read(name).float(), expected, rtol=1e-2, atol=1e-4)


def test_a_merge_from_a_gguf_file(pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(make_model(tmp_path / "plain", **SHAPE), tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(pair, source="tiny.gguf")  # a plain name is a file when there is one
    for _ in range(2):
        seen: list[Event] = []
        pipeline.run(recipe, RunDir.create(recipe.output), seen.append)
        assert any("rounded away" in event.message for event in seen if isinstance(event, Warned))
    report = json.loads((Path(recipe.output) / "report.json").read_text())
    assert {score["model"] for score in report["scores"]} >= {"source", "target", "fused"}
    precision = report["models"]["source"]["precision"]
    assert precision == "GGUF Q8_0, 8.6 bits a weight" and report["models"]["target"]["precision"] is None
    card, page = (
        (Path(recipe.output) / name).read_text().replace("\\_", "_") for name in ("model/README.md", "report.md")
    )  # as a reader of Markdown sees them
    assert f"read from {precision}" in card and f"bfloat16 from {precision}" in page
    assert "python convert_hf_to_gguf.py . --outtype bf16 --outfile run-bf16.gguf" in card
    assert "llama-quantize run-bf16.gguf run-Q4_K_M.gguf Q4_K_M" in card
    assert (
        len(list((tmp_path / "hf" / "tmerge" / "unpacked").glob("*/model.safetensors.index.json"))) == 1
    )  # once for both runs


def test_an_interrupted_unpacking_goes_on(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(make_model(tmp_path / "plain", **SHAPE), tmp_path / "tiny.gguf")
    recipe, made = recipe_of(pair, source=str(file)), []
    save = dequantise.save_file

    def failing(tensors: Any, path: Any, *more: Any) -> None:
        made.append(path)
        if len(made) == 2:
            raise OSError(28, "No space left on device")
        save(tensors, path, *more)

    monkeypatch.setattr(dequantise, "save_file", failing)
    home = tmp_path / "hf" / "tmerge" / "unpacked"
    prepared = prepare(recipe)
    with pytest.raises(StorageError, match="disk full"):
        download_models(prepared, lambda event: None)
    assert [path.name for path in home.glob("*.making/*.safetensors")] == ["model-00001-of-00003.safetensors"]
    assert not list(home.glob("*/model.safetensors.index.json")) and not list(home.glob("*.making/.*"))
    seen: list[Event] = []
    party = download_models(prepared, seen.append).source
    assert len(made) == 4, "the first of three was there"
    assert set(party.checkpoint.names) == set(load_file(tmp_path / "plain" / "model.safetensors"))
    told = [event for event in seen if isinstance(event, StageStarted | StageProgressed | StageFinished)]
    assert {event.stage for event in told} == {"download"} and "Unpacking the weights of" in told[0].label
    assert (
        told[-2].done
        == told[-2].total
        == prepared.source.facts.bytes_on_disk
        == sum(party.checkpoint.info(name).bytes for name in party.checkpoint.names)
    )
    assert told[-1].outcome == "done"


def test_room_for_unpacking_is_asked_for_first(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(make_model(tmp_path / "plain", **SHAPE), tmp_path / "tiny.gguf")
    recipe = recipe_of(pair, source=str(file))
    prepared = prepare(recipe)
    assert unpacked_bytes(prepared.source, prepared.target) == prepared.source.facts.bytes_on_disk > 0
    monkeypatch.setattr(dequantise.machine, "memory", lambda: SimpleNamespace(available=100))
    with pytest.raises(MemoryShortage, match="unpacking its largest part takes"):
        download_models(prepared, lambda event: None)
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    free = prepared.estimate.disk_bytes + prepared.source.facts.bytes_on_disk - 1
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    (problem,) = check(recipe)
    assert "and the unpacked weights, to the same disk," in problem
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=free + 1))
    assert check(recipe) == []


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_quantised_source_teaches_and_is_tuned(pair: dict[str, Any], tmp_path: Path, tune: str) -> None:
    file = write_gguf(make_model(tmp_path / "plain", **SHAPE), tmp_path / "tiny.gguf", "Q4_0")
    teacher = {"tune": tune, "tune_learning_rate": 0.01, "tune_epochs": 1, "events": 8}
    adaptation = {
        "samples": 40, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 1, "learning_rate": 1e-4,
        "compare": ["sft", "distill"], "teacher": teacher, "controls": [], "checkpoints": 1, "max_steps": 1,
    }  # fmt: skip
    text = {"samples": 60, "validation": 10, "holdout": 10}
    recipe = recipe_of(pair, source=str(file), calibration=text, adaptation=adaptation)
    seen: list[Event] = []
    pipeline.run(recipe, RunDir.create(recipe.output), seen.append)
    tuned = [event for event in seen if isinstance(event, StageFinished) and event.stage == "tune"]
    assert [event.outcome for event in tuned] == ["done"]
    told = json.loads((Path(recipe.output) / "report.json").read_text())["adaptation"]["tuned"]
    assert told["method"] == tune and told["after"] < told["before"]


def as_fp8(folder: Path, block: int = 32) -> dict[str, torch.Tensor]:
    """Rounds the linear layers of a model folder to FP8 in blocks, as fine-grained checkpoints have them; what is
    left of each."""
    left: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        left |= _rounded(file, block)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        entries = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
        index.write_text(json.dumps({"metadata": {}, "weight_map": entries}))
    settings = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    edit_config(folder, quantization_config=settings)
    return left


def _rounded(file: Path, block: int) -> dict[str, torch.Tensor]:
    packed: dict[str, torch.Tensor] = {}
    left = {}
    for name, value in load_file(file).items():
        if value.dim() != 2 or "embed" in name or "lm_head" in name:
            packed[name] = left[name] = value
            continue
        rows, columns = value.shape
        blocks = value.reshape(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3)) / 448
        small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        packed[name] = small.reshape(value.shape)
        packed[name.replace(".weight", ".weight_scale_inv")] = scale
        left[name] = (small.float() * scale[:, None, :, None]).reshape(value.shape)
    save_file(packed, file, {"format": "pt"})
    return left


@pytest.mark.parametrize(("family", "shard"), [("llama", "5GB"), ("qwen3", "40KB")])
def test_fine_grained_fp8(pair: dict[str, Any], tmp_path: Path, family: str, shard: str) -> None:
    folder = make_model(tmp_path / "fp8", family, head_dim=16, **SHAPE, kv_heads=2, max_shard_size=shard)
    left = as_fp8(folder)
    recipe = recipe_of(pair, source=str(folder))
    assert any(
        "FP8 in blocks of 32 x 32, 8 bits a weight, is read as bfloat16" in told for told in prepare(recipe).warnings
    )
    read = source_weights(recipe)
    assert set(read.names) == set(left)
    for name, value in left.items():
        torch.testing.assert_close(read.read(name).float(), value.to(torch.bfloat16).float(), rtol=1e-2, atol=1e-4)
    assert "quantization_config" not in json.loads((read.folder / "config.json").read_text())
    pipeline.run(recipe, RunDir.create(recipe.output), lambda event: None)


@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_folders(pair: dict[str, Any], tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / "packed", **SHAPE, layers=1, dtype=torch.bfloat16)
    left = as_packed(folder, kind)
    recipe = recipe_of(pair, source=str(folder))
    prepared = prepare(recipe)
    assert any(SAID.get(kind, "bits a weight") in told for told in prepared.warnings)
    assert prepared.source.facts.dtype == "bfloat16" and not prepared.source.located.whole
    read = source_weights(recipe)
    assert set(read.names) == set(left)
    for name, value in left.items():
        assert read.info(name).shape == value.shape
        torch.testing.assert_close(read.read(name).float(), value.float(), rtol=1e-2, atol=1e-4)


def test_a_packing_that_is_named_by_the_text_part_or_a_file_beside(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "packed", **SHAPE, layers=1)
    left = as_packed(folder, "gptq 4")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, quantization_config=None)
    (folder / "quantize_config.json").write_text(json.dumps({key: settings[key] for key in ("bits", "group_size")}))
    assert set(source_weights(recipe_of(pair, source=str(folder))).names) == set(left)
    (folder / "quantize_config.json").unlink()
    edit_config(folder, text_config={"quantization_config": settings})
    assert scheme_of(folder) is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 3}, "cannot be read: 3 bits a weight: 2, 4 or 8 are read"),
        ({"quant_method": "awq", "version": "gemv"}, "cannot be read: its layout is gemv with 4 bits"),
        ({"quant_method": "gptq", "bits": 8}, r"weight is \[32, 24\], and \[32, 48\] by its config.json"),
        ({"quant_method": "awq"}, r"weight is \["),
    ],
)
def test_a_packing_that_is_not_as_its_configuration_says(
    pair: dict[str, Any], tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    folder = make_model(tmp_path / "packed", layers=1)
    as_packed(folder, "gptq 4")
    edit_config(folder, quantization_config=settings)
    (problem,) = check(recipe_of(pair, source=str(folder)))
    assert re.search(said, problem) and "name the model it was made from" in problem


@pytest.mark.parametrize("method", ["hqq", "aqlm", "mxfp4"])
def test_other_packings_are_refused_with_the_next_step(pair: dict[str, Any], method: str) -> None:
    edit_config(Path(pair["source"]), quantization_config={"quant_method": method})
    (problem,) = check(recipe_of(pair))
    assert f"is quantised ({method})" in problem and "name the model it was made from" in problem
    assert "GGUF, FP8, compressed-tensors, GPTQ, AWQ or bitsandbytes" in problem


def test_a_quantised_target_is_refused(pair: dict[str, Any], tmp_path: Path) -> None:
    file = write_gguf(make_model(tmp_path / "plain", **SHAPE), tmp_path / "tiny.gguf")
    as_fp8(make_model(tmp_path / "fp8", **SHAPE))
    for target in (file, tmp_path / "fp8"):
        (problem,) = check(recipe_of(pair, target=str(target)))
        assert "a target is written as it is read" in problem and "convert_hf_to_gguf" in problem


@pytest.mark.parametrize("content", [b"", b"GGUF", b"certainly not" * 99])
def test_a_file_that_is_no_gguf(pair: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.gguf").write_bytes(content)
    (problem,) = check(recipe_of(pair, source=str(tmp_path / "odd.gguf")))
    assert "odd.gguf: it " in problem and "name the model it was made from" in problem
    (problem,) = check(recipe_of(pair, source="not-there.gguf"))
    assert "no file not-there.gguf" in problem and "org/name:file.gguf" in problem
