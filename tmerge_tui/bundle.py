"""The engine that the one-file executable carries, unpacked once into the user's cache.

The executable is a PyInstaller one-file application of the terminal part alone, which starts in a fifth of a second.
Its archive has one entry that is not extracted at a start: the engine, an application of its own with torch inside, as
`engine.tar.zst`. It is unpacked beside the wizard, or when a command first needs it, under a temporary name that is
renamed at the end: a folder that is there is whole. From source and in the engine itself there is nothing to unpack.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import platformdirs

from tmerge_tui import shipped, stopping
from tmerge_tui.edition import edition
from tmerge_tui.errors import StorageError
from tmerge_tui.system import insist, open_to_others

ENTRY = "engine.tar.zst"
NAME = "tmerge.exe" if sys.platform == "win32" else "tmerge"
SPARE = 50e6  # bytes to leave free on the disk of the cache
ELSEWHERE = "free space, or set TMERGE_CACHE to a folder on another disk"

# PyInstaller's archive (CArchive): a cookie at the end of the file, and a table of entries that it points to.
MAGIC = b"MEI\014\013\012\013\016"
COOKIE = struct.Struct("!8sIIII64s")  # magic, archive bytes, table offset, table bytes, Python version, its library
ITEM = struct.Struct("!IIIIBc")  # entry bytes, offset, packed bytes, bytes, compressed, type; then the name

Progress = Callable[[int, int], None]  # bytes read, bytes of the packed engine


@dataclass(frozen=True)
class Payload:
    """Where the packed engine lies in the executable, in bytes."""

    file: Path
    offset: int
    size: int


def is_split() -> bool:
    """Whether this process is the terminal part of a one-file executable, which has to unpack its engine."""
    return edition().engine is not None


def cache_folder() -> Path:
    """Where engines are unpacked; TMERGE_CACHE sets another place."""
    chosen = os.environ.get("TMERGE_CACHE")
    return (Path(chosen) if chosen else Path(platformdirs.user_cache_dir("tmerge", appauthor=False))) / "engine"


def folder() -> Path:
    """That of this executable's engine, whether it is unpacked or not."""
    engine = edition().engine
    assert engine is not None, "only a split executable has an engine to unpack"
    return cache_folder() / f"{edition().version}-{engine.sha256[:12]}"


def executable() -> Path:
    """The program that does what needs torch: this one, or the engine's.

    Raises StorageError when someone else could have put another in its place.
    """
    if not is_split():
        return Path(sys.executable)
    loose = open_to_others(folder())
    if loose is not None:
        raise StorageError(
            f"the engine is not started: others can change {loose}",
            "a cache that only you can write to",
            f"remove it and `chmod go-w` that folder, or {ELSEWHERE}",
        )
    return folder() / NAME


def assets() -> Path:
    """The shipped files that stay where they are: a one-file executable's own are gone when it ends."""
    return folder() / "_internal" / "tmerge_tui" / "assets" if is_split() else shipped.folder()


def is_ready() -> bool:
    return not is_split() or folder().is_dir()


def unpack(progress: Progress = lambda done, total: None) -> Path:
    """The engine's program, unpacked first if it is not. Waits for another process that is unpacking it.

    Raises StorageError when the cache cannot be written, has no room or lets no program start, or the executable is
    damaged.
    """
    if is_ready():
        return executable()
    from filelock import FileLock

    target, engine = folder(), edition().engine
    assert engine is not None
    needed = f"a folder that can be written, with {(engine.unpacked + SPARE) / 1e6:,.0f} MB"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / ".lock"):
            if not target.is_dir():
                for left in target.parent.glob("*.part"):  # of a process that was killed
                    shutil.rmtree(left)
                free = shutil.disk_usage(target.parent).free
                if free < engine.unpacked + SPARE:
                    raise StorageError(
                        f"no room for the engine in {target.parent}: {free / 1e6:,.0f} MB free", needed, ELSEWHERE
                    )
                if is_noexec(target.parent):
                    raise StorageError(f"no program can start in {target.parent} (noexec)", needed, ELSEWHERE)
                part = target.with_name(target.name + ".part")
                try:
                    part.mkdir(mode=0o755)  # whatever the umask: what is in it is run
                    with stopping.undone(lambda: shutil.rmtree(part, ignore_errors=True)):
                        _extract(payload(), engine.sha256, part, progress)
                    insist(lambda: os.replace(part, target))
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                for old in engines():
                    if old != target and not in_use(old):
                        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        said = error.strerror or str(error)
        raise StorageError(f"cannot unpack the engine into {target}: {said}", needed, ELSEWHERE) from error
    return executable()


def is_noexec(folder: Path) -> bool:
    """Whether the disk is mounted so that programs on it cannot start (Linux says so; elsewhere False)."""
    if sys.platform == "linux":
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    return False


def engines() -> list[Path]:
    """All unpacked engines, those of other versions too."""
    return sorted(path for path in cache_folder().glob("*") if path.is_dir() and path.suffix != ".part")


def in_use(engine: Path) -> bool:
    """Whether a process of ours runs from an unpacked engine."""
    import psutil

    programs = (process.info["exe"] for process in psutil.process_iter(["exe"]))
    return any(program and engine.resolve() in Path(program).parents for program in programs)


def hand_over(arguments: list[str]) -> NoReturn:
    """Goes on as the engine, with the same arguments. It has to be unpacked."""
    program = [str(executable()), *arguments]
    if sys.platform == "win32":  # exec there returns to the shell before the program has ended
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes: the engine decides
        sys.exit(subprocess.call(program, env=environment()))
    stopping.block()
    os.execve(program[0], program, environment())


def environment() -> dict[str, str]:
    """This process's, without what a frozen executable sets for itself alone."""
    if not getattr(sys, "frozen", False):
        return dict(os.environ)
    found = {name: value for name, value in os.environ.items() if not name.startswith("_PYI_")}
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LIBPATH"):
        before = found.pop(f"{name}_ORIG", None)
        found.pop(name, None)
        if before is not None:
            found[name] = before
    found["PYINSTALLER_RESET_ENVIRONMENT"] = "1"
    return found


def open_in_browser(address: str) -> bool:
    """Whether a browser could be started; it sees the environment of the machine, not that of a frozen executable."""
    import webbrowser

    ours, theirs = dict(os.environ), environment()
    changed = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}

    def become(wanted: dict[str, str]) -> None:
        for name in changed:
            os.environ.pop(name, None)
            if name in wanted:
                os.environ[name] = wanted[name]

    become(theirs)  # the module starts the browser itself and takes no environment
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False
    finally:
        become(ours)


@cache
def payload() -> Payload:
    """Where this executable holds its engine. Raises StorageError when it is not there."""
    file = Path(sys.executable)
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            at = data.rfind(MAGIC)
            _, length, table, table_length, *_ = COOKIE.unpack_from(data, at)
            start = at + COOKIE.size - length
            items = _items(data[start + table : start + table + table_length])
            offset, size = next((offset, size) for name, offset, size in items if name == ENTRY)
        except (struct.error, UnicodeError, StopIteration) as error:
            raise _damaged(file) from error
    return Payload(file, start + offset, size)


def _items(table: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, offset, packed bytes) of each entry."""
    at = 0
    while at < len(table):
        length, offset, size, *_ = ITEM.unpack_from(table, at)
        yield table[at + ITEM.size : at + length].rstrip(b"\0").decode(), offset, size
        at += length


def _extract(source: Payload, sha256: str, to: Path, progress: Progress) -> None:
    """Unpacks the engine into the folder `to`. Raises StorageError when it is not, byte for byte, what was built."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    with open(source.file, "rb") as stream:
        stream.seek(source.offset)
        reader = _Reader(stream, source.size, progress)
        try:
            with zstd.ZstdFile(reader) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
                archive.extractall(to, filter="tar")
        except (zstd.ZstdError, tarfile.TarError, EOFError) as error:
            raise _damaged(source.file) from error
        while reader.read(2**20):  # what tar does not need of the last block
            pass
    if reader.digest.hexdigest() != sha256:
        raise _damaged(source.file)


class _Reader(io.RawIOBase):
    """`size` bytes of a file from where it stands, counted and hashed as they are read."""

    def __init__(self, stream: io.BufferedReader, size: int, progress: Progress) -> None:
        self.stream, self.size, self.left, self.progress = stream, size, size, progress
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.stream.readinto(memoryview(buffer)[: self.left])
        self.left -= count
        self.digest.update(memoryview(buffer)[:count])
        self.progress(self.size - self.left, self.size)
        return count


def _damaged(file: Path) -> StorageError:
    return StorageError(
        f"{file} is damaged: its engine cannot be read", "the file as it was released", "download it again"
    )
