"""Which files of a folder hold the weights: those that transformers would load, safetensors before pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tmerge_tui.errors import ModelError
from tmerge_tui.files import parse_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"  # of a LoRA adapter

# Weights in other formats and copies of the same weights: neither read nor copied.
FOREIGN_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml"),
    *(".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".ot"),
    *(".safetensors.index.json", ".bin.index.json"),
)


@dataclass(frozen=True)
class WeightFiles:
    files: tuple[Path, ...]
    index_file: Path | None  # None: one file that needs none
    index: Mapping[str, str]  # tensor -> file name, as the index has it
    pickled: bool  # PyTorch's .bin instead of safetensors


def find_weight_files(folder: Path) -> WeightFiles:
    """Raises ModelError when there are none that this version reads, or not all that the index names."""
    for single, index in ((WEIGHTS, INDEX), (PICKLED, PICKLED_INDEX)):
        pickled = single == PICKLED
        if (folder / single).is_symlink() or (folder / single).exists():
            return WeightFiles((folder / single,), None, {}, pickled)
        if (folder / index).exists():
            return _sharded(folder / index, pickled)
    raise _no_weights(folder)


def no_config(folder: Path) -> ModelError:
    """What is wrong with a folder without config.json, and what to do."""
    hint = "check the path; in the Hub cache, name the folder below snapshots/"
    inside = sorted({path.parent.name for name in ("config.json", ADAPTER) for path in folder.glob(f"*/{name}")})
    if any(folder.glob("*.gguf")):
        hint = "GGUF files are quantised copies: name the model they were made from"
    elif (folder / ADAPTER).is_file():
        hint = "this is a LoRA adapter: merge it into its base model first (peft: merge_and_unload, save_pretrained)"
    elif inside:
        hint = f"name the folder inside it: {', '.join(inside[-3:])}"
    return ModelError(
        f"{folder} has no config.json",
        "a model as save_pretrained writes it: config.json, *.safetensors, tokenizer files",
        hint,
    )


def _sharded(index: Path, pickled: bool) -> WeightFiles:
    try:
        entries = dict(parse_json(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{index} cannot be read: {error}", "JSON with a weight_map", "download the model again"
        ) from error
    files = sorted({str(name) for name in entries.values()})
    if any(Path(name).name != name for name in files):
        raise ModelError(f"{index} names files outside its own folder", "names of shards beside it")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing[:4])}",
            f"every file that {index.name} names",
            "download the model again",
        )
    return WeightFiles(tuple(index.parent / name for name in files), index, entries, pickled)


def _no_weights(folder: Path) -> ModelError:
    if any(folder.glob("*.gguf")):
        return ModelError(
            f"{folder} has only GGUF weights", "safetensors weights", "name the model they were made from"
        )
    if any(folder.glob("*.safetensors")):
        return ModelError(
            f"{folder} has safetensors files but neither {WEIGHTS} nor {INDEX}",
            "one of them, as save_pretrained writes",
            "the download is incomplete, or the folder holds an adapter: merge that into its base model first",
        )
    if any(file for suffix in ("bin", "pth", "pt") for file in folder.glob(f"*.{suffix}")):
        return ModelError(
            f"{folder} has pickled weights, but neither {PICKLED} nor {PICKLED_INDEX}",
            f"{WEIGHTS}, {PICKLED} or their shards",
            "convert once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    return ModelError(f"{folder} has no weights", f"{WEIGHTS}, or {INDEX} with its shards", "download the model again")
