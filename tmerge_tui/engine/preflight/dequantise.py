"""A quantised source, read: unpacked once to bfloat16 into a folder that later runs find again.

A source is only read, so what quantisation took from it is all there is to say. GGUF files and fine-grained FP8 folders
are unpacked, on a CPU and file by file where the format allows it; other kinds are refused where they are found. The
result lies under the Hub's home folder, named after the file or the commit.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tmerge_tui import machine
from tmerge_tui.errors import MemoryShortage, ModelError, TmergeError
from tmerge_tui.files import as_the_umask_leaves, parse_json, storage
from tmerge_tui.hub.locate import Located
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import auto_class, build_on_meta, first_line, quantisation, quiet, read_config
from tmerge_tui.models.header import TensorInfo
from tmerge_tui.quantities import size
from tmerge_tui.run_folder import key
from tmerge_tui.system import insist

WAY = 1  # counts up when sources are unpacked otherwise
GGUF = ".gguf"
FP8 = "fp8"
DTYPE = torch.bfloat16
SCALES = ("_scale_inv", ".input_scale", ".activation_scale")  # what is no weight


def packing(located: Located) -> str | None:
    """How a model that can be unpacked here is packed: ".gguf", "fp8", or None for any other."""
    if located.folder.suffix.lower() == GGUF:
        return GGUF
    return FP8 if quantisation(located.folder) == FP8 else None


def unpacked_folder(located: Located) -> Path:
    """Where the unpacked model lies, or will lie."""
    from huggingface_hub import constants

    file = located.folder if located.folder.is_file() else located.folder / "config.json"
    stat = file.stat()
    name = located.commit or f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return Path(constants.HF_HOME) / "tmerge" / "unpacked" / key(WAY, located.name, name)


def described(located: Located) -> Located:
    """The quantised source as what is known of it: its unpacked folder, or until then one of configuration and
    tokenizer. `note` says what it costs. Raises ModelError when transformers cannot read it."""
    kind = packing(located)
    assert kind is not None
    out = unpacked_folder(located)
    what = "GGUF" if kind == GGUF else "FP8"
    note = f"{located.name}: {what} weights are read as bfloat16; what quantisation has rounded away stays away"
    located = replace(located, note="; ".join(filter(None, (located.note, note))), packed=located.folder)
    if (out / "config.json").is_file():
        return replace(located, folder=out, pending=None, unpacked=True)
    head = out.with_name(f"{out.name}.head")
    if not (head / "config.json").is_file():
        _write_head(located, kind, head)
    return replace(located, folder=head)


def expected(located: Located, trust_remote_code: bool) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors that unpacking will give."""
    config = read_config(located.folder, located.name, trust_remote_code)
    model = build_on_meta(config, located.name, trust_remote_code)
    file = located.folder / "model.safetensors"
    return {
        name: TensorInfo(file, DTYPE, tuple(value.shape), 0, value.numel() * DTYPE.itemsize)
        for name, value in model.state_dict().items()
    }


def unpacked(located: Located, trust_remote_code: bool) -> Located:
    """The model in bfloat16, written once. Raises ModelError, MemoryShortage, StorageError."""
    assert located.packed is not None
    original = replace(located, folder=located.packed)
    out = unpacked_folder(original)
    making = out.with_name(f"{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    try:
        with storage(out):
            shutil.copytree(located.folder, making)
            if located.packed.is_file():
                _unpack_gguf(located, trust_remote_code, making)
            else:
                _unpack_fp8(located.packed, making)
    except TmergeError:
        raise
    except Exception as error:  # readers of many formats raise what they like
        raise _unreadable(located, error) from error
    _drop_quantisation(making)
    with storage(out):
        as_the_umask_leaves(making)
        insist(lambda: making.rename(out))
    return replace(located, folder=out, pending=None, unpacked=True)


def _unpack_gguf(located: Located, trust_remote_code: bool, out: Path) -> None:
    """All of a GGUF file at once, as transformers does it. Raises MemoryShortage when that does not fit."""
    import transformers

    assert located.packed is not None
    need = sum(tensor.bytes for tensor in expected(located, trust_remote_code).values())
    there = machine.memory().available
    if need > there:
        raise MemoryShortage(
            f"{located.name}: unpacking its weights takes {size(need)} of memory, {size(there)} are free",
            "room for the weights in bfloat16, once",
            "unpack it on a larger machine and name that folder, or name the model it was made from",
        )
    unpacking = getattr(transformers, "GgufConfig", None)  # older versions always unpack
    more = {} if unpacking is None else {"quantization_config": unpacking(dequantize=True)}
    with quiet():
        config = read_config(located.folder, located.name, trust_remote_code)
        model = auto_class(config).from_pretrained(
            located.packed.parent, gguf_file=located.packed.name, dtype=DTYPE, local_files_only=True, **more
        )
        model.to(DTYPE).save_pretrained(out)


def _unpack_fp8(packed: Path, out: Path) -> None:
    """One file of weights after the other: W = W8 * scale, a scale for each block of rows and columns."""
    checkpoint = Checkpoint(packed)
    config = parse_json((packed / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    block = config.get("weight_block_size")
    places: dict[str, str] = {}
    for file in checkpoint.weight_files:
        names = [n for n in checkpoint.names if checkpoint.info(n).file == file and not n.endswith(SCALES)]
        tensors = {name: _plain(checkpoint, name, block) for name in names}
        save_file(tensors, out / file.name, {"format": "pt"})
        places |= dict.fromkeys(names, file.name)
    if checkpoint.index_file is not None:
        index = {"metadata": {}, "weight_map": places}
        (out / checkpoint.index_file.name).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _plain(checkpoint: Checkpoint, name: str, block: tuple[int, int] | None) -> torch.Tensor:
    """A tensor of the checkpoint in bfloat16 when it is FP8, otherwise as it is."""
    value = checkpoint.read(name)
    if value.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
        return value
    scale = checkpoint.read(f"{name}_scale_inv").float()
    if block is not None and scale.numel() > 1:
        rows, columns = value.shape
        scale = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return (value.float() * scale).to(DTYPE)


def _write_head(located: Located, kind: str, head: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    assert located.packed is not None
    packed, making = located.packed, head.with_name(f"{head.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    try:
        with storage(head):
            making.mkdir(parents=True)
        if kind == GGUF:
            with quiet():
                config = AutoConfig.from_pretrained(packed.parent, gguf_file=packed.name)
                config.save_pretrained(making)
                AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(making)
        else:
            weights = (".safetensors", ".bin", ".index.json")
            with storage(head):
                for file in packed.iterdir():
                    if file.is_file() and not file.name.endswith(weights):
                        shutil.copyfile(file, making / file.name)
    except Exception as error:  # a file that is none, an architecture nobody knows
        raise _unreadable(located, error) from error
    _drop_quantisation(making)
    with storage(head):
        insist(lambda: making.rename(head))


def _drop_quantisation(folder: Path) -> None:
    """Takes the mention of a packing that is gone out of the configuration."""
    path = folder / "config.json"
    data = parse_json(path.read_text(encoding="utf-8"))
    data.pop("quantization_config", None)
    with storage(path):
        path.write_text(json.dumps({**data, "dtype": "bfloat16"}, indent=2, ensure_ascii=False), encoding="utf-8")


def _unreadable(located: Located, error: Exception) -> ModelError:
    return ModelError(
        f"{located.name}: its quantised weights cannot be read: {first_line(error)}",
        "a packed model that the installed transformers unpacks on a CPU",
        "name the model it was made from, or upgrade transformers",
    )
