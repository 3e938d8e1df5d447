"""The header of one safetensors file: which tensor lies where.

The format: 8 bytes (little endian) that hold the header's length, that many bytes of JSON, then the tensors' data.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmerge_tui.errors import ModelError
from tmerge_tui.files import parse_json

MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes `start` to `end` (absolute) of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, TensorInfo]
    sha256: str  # of the header's bytes


def read_header(file: Path) -> Header:
    """Raises ModelError when the file cannot be read, is shorter or longer than its header says, or is damaged."""

    def damaged(what: str) -> ModelError:
        return ModelError(f"{file}: {what}", "a whole safetensors file", "download the model again")

    with reading(file), open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise damaged(f"cut or damaged: {size} bytes, of which {length} should be the header")
        head = stream.read(length)
    base = 8 + length
    try:
        entries = _entries(parse_json(head))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged("its header is not readable") from error
    tensors, last = {}, 0
    for name, kind, shape, start, end in entries:
        if kind not in DTYPES:
            raise ModelError(
                f"{file}: {name} has type {kind}", f"one of {', '.join(DTYPES)}", "use the unquantised model"
            )
        info = TensorInfo(file, DTYPES[kind], shape, base + start, base + end)
        if start < 0 or min(shape, default=0) < 0 or info.bytes != info.numel * info.dtype.itemsize:
            raise damaged(f"{name} has {info.bytes} bytes for shape {list(shape)} of {kind}")
        tensors[name] = info
    for name, _, _, start, end in sorted(entries, key=lambda entry: entry[3:]):
        if start != last:
            raise damaged(f"{name} begins at byte {start}, where {last} is next")
        last = end
    whole = base + last
    if whole != size:
        raise damaged(f"{'cut' if whole > size else 'too long'}: it has {size} bytes, its header says {whole}")
    return Header(tensors, hashlib.sha256(head).hexdigest())


def _entries(header: Any) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """(name, type, shape, first byte, past the last) of each tensor. Raises what a header of another form raises."""
    notes = header.pop("__metadata__", None) or {}
    if not all(isinstance(word, str) for word in notes.values()):
        raise ValueError("metadata that is no text")
    entries = []
    for name, entry in header.items():
        (start, end), shape = entry["data_offsets"], tuple(entry["shape"])
        if not all(type(number) is int for number in (start, end, *shape)):
            raise ValueError(f"{name} has shape {shape} and bytes {start} to {end}")
        entries.append((name, str(entry["dtype"]), shape, start, end))
    return entries


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns what the disk says into ModelError."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}", "a readable file") from error
