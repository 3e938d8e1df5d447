"""PyTorch's own checkpoint files (.bin): mapped into memory, and without running anything that is in them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.errors import ModelError
from tmerge_tui.files import storage
from tmerge_tui.models.header import DTYPES, Header, TensorInfo, reading

KINDS = {dtype: name for name, dtype in DTYPES.items()}
CONVERT = "convert once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Name -> tensor, whose bytes are read from the disk when they are used.

    Raises ModelError for a file that is damaged, that holds anything but tensors, or that is of a PyTorch before 1.6,
    whose files cannot be mapped.
    """
    with reading(file):
        try:
            found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
            old = "mmap can only be used" in str(error)
            raise ModelError(
                f"{file} "
                + ("is no file of PyTorch 1.6 or later" if old else "cannot be read, or holds more than tensors"),
                "a file of tensors as torch.save writes it",
                CONVERT if old else "download the model again, or choose one with safetensors weights",
            ) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{file} is no table of tensors", "a file as save_pretrained of a model writes it", CONVERT)
    odd = next((name for name, tensor in found.items() if tensor.dtype not in KINDS), None)
    if odd is not None:
        raise ModelError(f"{file}: {odd} has type {found[odd].dtype}", f"one of {', '.join(DTYPES)}")
    return dict(found)


def header_of(file: Path, tensors: Mapping[str, Tensor]) -> Header:
    """What a safetensors header says, but that a tensor's `start` and `end` count from its own first byte."""
    infos = {name: TensorInfo(file, t.dtype, tuple(t.shape), 0, t.nbytes) for name, t in tensors.items()}
    listing = repr(sorted((name, info.dtype, info.shape) for name, info in infos.items()))
    return Header(infos, hashlib.sha256(listing.encode()).hexdigest())


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], advance: Callable[[int], None]) -> None:
    """The same tensors as a safetensors file, one tensor in memory at a time; tied ones are written each."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with storage(file), open(file, "wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for chunk in _bytes_of(tensors):
            stream.write(chunk)
            advance(len(chunk))


def safetensors_name(name: str) -> str:
    """`model-00001-of-00002.safetensors` for `pytorch_model-00001-of-00002.bin`, and so for indexes."""
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def _bytes_of(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    for tensor in tensors.values():
        data: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        yield memoryview(data)
