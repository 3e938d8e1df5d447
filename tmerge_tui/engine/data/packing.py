"""The bytes of a file that may be packed: gzip, bzip2, xz and zstandard, told by first bytes, not by suffix."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tmerge_tui.errors import DataError
from tmerge_tui.files import is_pointer

PART = 1 << 20  # bytes unpacked at a time
FEW = 100 << 20  # bytes that any file may unpack to
MOST = 100  # times its size that a packed file may unpack to beyond that; text packs to a third or a tenth
SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")


def read_bytes(path: Path) -> bytes:
    """The content, unpacked. Raises DataError for what is not whole, OSError."""
    data = path.read_bytes()
    for first, name, open_packed in PACKERS:
        if data.startswith(first):
            try:
                with open_packed(data) as stream:
                    return _bounded(path, stream, len(data))
            except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise DataError(
                    f"{path}: not a whole {name} file: {error}", "a packed file", "pack it again"
                ) from error
    return data


def without_packing(path: Path) -> Path:
    """The path without the suffix of a packed file."""
    return Path(path.stem) if path.suffix.lower() in SUFFIXES else path


def refuse_pointer(path: Path) -> None:
    """Raises DataError for what git leaves in place of a large file when git-lfs is not installed; OSError."""
    if is_pointer(path):
        raise DataError(
            f"{path}: a pointer of git-lfs, not the file itself", "the file", "run `git lfs pull` in its folder"
        )


def _bounded(path: Path, stream: Any, packed: int) -> bytes:
    """Raises DataError for a file that is all packing: a few bytes that stand for gigabytes."""
    parts, total = [], 0
    while part := stream.read(PART):
        parts.append(part)
        total += len(part)
        if total > FEW and total > MOST * packed:
            raise DataError(
                f"{path}: unpacks to more than {MOST} times its size", "packed text", "pack the text itself again"
            )
    return b"".join(parts)


def _zstandard(data: bytes) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.BufferReader(data), "zstd")


PACKERS: tuple[tuple[bytes, str, Callable[[bytes], Any]], ...] = (
    (b"\x1f\x8b", "gzip", lambda data: gzip.GzipFile(fileobj=io.BytesIO(data))),
    (b"BZh", "bzip2", lambda data: bz2.BZ2File(io.BytesIO(data))),
    (b"\xfd7zXZ\0", "xz", lambda data: lzma.LZMAFile(io.BytesIO(data))),  # noqa: SIM115
    (b"\x28\xb5\x2f\xfd", "zstandard", _zstandard),
)
