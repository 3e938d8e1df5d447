"""Writing files so that they are whole or not there, and saying clearly what the disk objects to."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tmerge_tui import stopping
from tmerge_tui.errors import StorageError
from tmerge_tui.system import insist

POINTER = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: Path) -> bool:
    """Whether this is what git leaves in place of a large file where git-lfs is not installed. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turns what the disk says into StorageError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        in_use = sys.platform == "win32" and isinstance(error, PermissionError)  # or not allowed: it says the same
        raise StorageError(
            f"{'disk full' if full else 'cannot write'}: {error.filename or path}: {error.strerror or error}",
            "a folder that can be written, with room",
            f"{'close what has it open' if in_use else 'free space'} or fix permissions, then run the same command: "
            f"finished pieces are kept",
        ) from error
    except Exception as error:
        # safetensors reports a full disk as its own error type
        if any(said in str(error) for said in ("No space left", "os error 28", "os error 112")):  # 112: Windows
            raise StorageError(
                f"disk full: {path}",
                "room for the run's files",
                "free space, then run the same command: finished pieces are kept",
            ) from error
        raise


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what was written there is synced and takes its place at the end of the block.

    It has the permissions that the umask leaves, also where a library has put a private file of its own there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with open(temporary, "rb+") as file:
            os.chmod(temporary, mode)
            os.fsync(file.fileno())
        insist(lambda: os.replace(temporary, path))
    finally:
        temporary.unlink(missing_ok=True)


def as_the_umask_leaves(folder: Path) -> None:
    """Gives the files of a folder that a library has written the permissions of any new file."""
    probe = folder / f".{os.getpid()}.part"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            os.chmod(file, mode)


def write_atomic(path: Path, data: bytes) -> None:
    """Whole or not at all: written beside, synced, renamed."""
    with stopping.held(), renamed(path) as temporary:
        temporary.write_bytes(data)


def parse_json(text: str | bytes) -> Any:
    """What JSON that anyone may have written says. Raises ValueError, also where it is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
