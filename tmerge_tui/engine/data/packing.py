"""The bytes of a file that may be packed: gzip, bzip2, xz and zstandard, told by first bytes, not by suffix."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

from tmerge_tui.errors import DataError
from tmerge_tui.files import is_pointer

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")


def read_bytes(path: Path) -> bytes:
    """The content, unpacked. Raises DataError for what is not whole, OSError."""
    data = path.read_bytes()
    for first, name, unpack in PACKERS:
        if data.startswith(first):
            try:
                return unpack(data)
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


def _zstandard(data: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read())


PACKERS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", gzip.decompress),
    (b"BZh", "bzip2", bz2.decompress),
    (b"\xfd7zXZ\0", "xz", lzma.decompress),
    (b"\x28\xb5\x2f\xfd", "zstandard", _zstandard),
)
