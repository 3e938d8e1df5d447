"""llama.cpp's file format: metadata, a table of tensors, then their data; one file, or several that are one model.

Only what is asked for is read, through a function that gives bytes of a file: of a file on the Hub the beginning is
enough to know everything but weights. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmerge_tui.errors import ModelError
from tmerge_tui.recipe import gguf_parts

FIRST = 1 << 20  # bytes of a beginning that are asked for first; a vocabulary takes 5 to 20 MB
ALIGNMENT = 32  # bytes, where the metadata says nothing else
PLAIN = ("F32", "F16", "BF16", "F64")  # types that are no quantisation
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

Read = Callable[[int, int], bytes]  # bytes `start` to `end` (exclusive) of a file, fewer where it ends


@dataclass(frozen=True)
class Part:
    """One file of a model."""

    name: str
    size: int  # bytes
    read: Read


@dataclass(frozen=True)
class GgufTensor:
    name: str
    kind: str  # as ggml names it: F32, Q4_K, ...
    shape: tuple[int, ...]  # [rows, columns]; ggml counts the other way round
    part: int
    start: int  # bytes in its file, absolute
    bytes: int


@dataclass(frozen=True)
class Gguf:
    parts: tuple[Part, ...]
    metadata: Mapping[str, Any]  # of the first file; arrays of strings as their length
    tensors: Mapping[str, GgufTensor]
    head: int  # bytes of the first file before its data

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "?"))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Types of the matrices, the one of most bytes first."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1:
                sizes[tensor.kind] += tensor.bytes
        return tuple(kind for kind, _ in sizes.most_common())

    @property
    def bits(self) -> float:
        """Bits of a weight, scales included, on average."""
        count = sum(math.prod(tensor.shape) for tensor in self.tensors.values())
        return 8 * sum(tensor.bytes for tensor in self.tensors.values()) / max(count, 1)

    def values(self, name: str) -> np.ndarray:
        """A tensor in float32, dequantised. Raises ModelError for a file that ends before it."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType[tensor.kind]
        data = self.parts[tensor.part].read(tensor.start, tensor.start + tensor.bytes)
        if len(data) < tensor.bytes:
            raise _damaged(self.parts[tensor.part], f"it ends before {name}")
        plain = {"F32": np.float32, "F16": np.float16, "F64": np.float64}.get(tensor.kind)
        if plain is not None:
            return np.frombuffer(data, plain).astype(np.float32).reshape(tensor.shape)
        width, block = GGML_QUANT_SIZES[kind]
        rows = np.frombuffer(data, np.uint8).reshape(*tensor.shape[:-1], tensor.shape[-1] // width * block)
        return np.asarray(dequantize(rows, kind), np.float32).reshape(tensor.shape)


def local_parts(file: Path) -> tuple[Part, ...]:
    """The files of a model on this disk. Raises ModelError when one is not there."""
    files = [file.with_name(name) for name in gguf_parts(file.name)]
    gone = [one.name for one in files if not one.is_file()]
    if gone:
        raise ModelError(
            f"{file.name} is one of {len(files)} files, and {gone[0]} is not beside it",
            "every file of a split model in one folder",
            "get the others, or join them where they are: llama-gguf-split --merge FIRST OUT",
        )
    return tuple(Part(str(one), one.stat().st_size, _reader(one)) for one in files)


def open_gguf(parts: Sequence[Part]) -> Gguf:
    """Metadata and tensors of a model. Raises ModelError for what is no GGUF, cut, damaged, or of an unknown type."""
    metadata, tensors, head = _head(parts[0], 0)
    said = int(metadata.get("split.count", 1) or 1)
    if said != len(parts):
        raise ModelError(
            f"{parts[0].name} says that it is one of {said} files, its name that it is one of {len(parts)}",
            "files as llama-gguf-split names them",
            "rename them back, or join them first: llama-gguf-split --merge FIRST OUT",
        )
    for number, part in enumerate(parts[1:], 1):
        tensors |= _head(part, number)[1]
    return Gguf(tuple(parts), metadata, tensors, head)


def _head(part: Part, number: int) -> tuple[dict[str, Any], dict[str, GgufTensor], int]:
    asked = min(FIRST, part.size)
    while True:
        cursor = _Cursor(part.read(0, asked))
        try:
            return _parsed(cursor, part, number)
        except (struct.error, _Short):
            if asked >= part.size:
                raise _damaged(part, "it is cut or damaged") from None
            asked = min(4 * asked, part.size)
        except (ValueError, OverflowError, MemoryError) as error:
            raise _damaged(part, str(error)) from None


class _Short(Exception):
    """The bytes end before what is said to be there."""


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise _Short

    def string(self) -> str:
        length = self.take("<Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.take(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"it holds a value of type {kind}")
        inner, count = self.take("<I"), self.take("<Q")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[inner]))
            return count
        for _ in range(count):
            self.value(inner)
        return count


def _parsed(cursor: _Cursor, part: Part, number: int) -> tuple[dict[str, Any], dict[str, GgufTensor], int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin as a GGUF file does")
    cursor.skip(4)
    version = cursor.take("<I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, or it was written on a big-endian machine")
    tensor_count, value_count = cursor.take("<Q"), cursor.take("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.take("<I"))
    table = []
    for _ in range(tensor_count):
        name = cursor.string()
        shape = tuple(reversed([int(cursor.take("<Q")) for _ in range(cursor.take("<I"))]))
        table.append((name, shape, cursor.take("<I"), cursor.take("<Q")))
    alignment = int(metadata.get("general.alignment", ALIGNMENT))
    begin = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, number_of_kind, offset in table:
        try:
            kind = GGMLQuantizationType(number_of_kind)
        except ValueError:
            raise ValueError(f"{name} has a type ({number_of_kind}) that the installed gguf does not know") from None
        width, block = GGML_QUANT_SIZES[kind]
        size = math.prod(shape) // width * block
        if begin + offset + size > part.size:
            raise ValueError(f"it has {part.size} bytes, and {name} would end at {begin + offset + size}: it is cut")
        tensors[name] = GgufTensor(name, kind.name, shape, number, begin + offset, size)
    return metadata, tensors, begin


def _reader(file: Path) -> Read:
    def read(start: int, end: int) -> bytes:
        with open(file, "rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    return read


def _damaged(part: Part, what: str) -> ModelError:
    return ModelError(
        f"{part.name}: {what}", "a whole GGUF file", "download it again, or name the model it was made from"
    )
