"""Archives whose bytes depend on nothing but names and content, their parts where they are too large, and checksums."""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from inside import ReleaseError

SUMS = "SHA256SUMS"
LEVEL = 6  # of gzip and zip; most of the executable is packed already, so more gains nothing
BLOCK = 2**20  # bytes read at once
PART = re.compile(r"\.part\d\d$")


def make(to: Path, members: Mapping[str, Path], executable: str, epoch: int) -> None:
    """Writes a .zip or .tar.gz of {name in it: file}, sorted, each of the date `epoch` and of nobody; only `executable`
    may be run."""
    write = _zip if to.suffix == ".zip" else _tar
    write(to, sorted(members.items()), executable, epoch)


def _tar(to: Path, members: Sequence[tuple[str, Path]], executable: str, epoch: int) -> None:
    with (
        open(to, "wb") as file,
        gzip.GzipFile("", "wb", LEVEL, file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for name, path in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = path.stat().st_size, epoch, 0o755 if name == executable else 0o644
            with open(path, "rb") as source:
                archive.addfile(entry, source)


def _zip(to: Path, members: Sequence[tuple[str, Path]], executable: str, epoch: int) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        for name, path in members:
            entry = zipfile.ZipInfo(name, time.gmtime(epoch)[:6])
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3  # Unix, wherever it is made
            entry.external_attr = (0o100755 if name == executable else 0o100644) << 16
            entry.file_size = path.stat().st_size  # says whether the entry needs 64-bit sizes
            with open(path, "rb") as source, archive.open(entry, "w") as packed:
                while block := source.read(BLOCK):
                    packed.write(block)


def split(whole: Path, limit: int) -> list[Path]:
    """`whole` itself, or beside it its parts of `limit` bytes: joined in order they are it."""
    if whole.stat().st_size <= limit:
        return [whole]
    parts: list[Path] = []
    with open(whole, "rb") as source:
        while block := source.read(min(BLOCK, limit)):
            part = whole.with_name(f"{whole.name}.part{len(parts) + 1:02}")
            with open(part, "wb") as file:
                while block:
                    file.write(block)
                    block = source.read(min(BLOCK, limit - file.tell()))
            parts.append(part)
    return parts


def sha256(*files: Path) -> str:
    """Of one file, or of several joined."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as source:
            while block := source.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def write_sums(to: Path, sums: Mapping[str, str]) -> None:
    """{file name: SHA-256} as `sha256sum -c` reads it."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    to.write_text(text, encoding="utf-8", newline="\n")


def read_sums(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise ReleaseError(f"no {file}", "the checksums beside the files of a release", "python3 build/release.py")
    lines = file.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def check(folder: Path) -> dict[str, str]:
    """The checksums of a folder, where all of them hold; a file that is there in parts only is joined to be checked.

    Raises ReleaseError with every file that is missing or was changed.
    """
    sums = read_sums(folder / SUMS)
    problems = []
    for name, digest in sums.items():
        files = [folder / name] if (folder / name).is_file() else parts_of(name, sums, folder)
        if not files or not all(file.is_file() for file in files):
            problems.append(f"{name} is missing")
        elif sha256(*files) != digest:
            problems.append(f"{name} was changed")
    if problems:
        raise ReleaseError(f"{folder}: {', '.join(problems)}", f"the files that {SUMS} names, as they were built")
    return sums


def parts_of(name: str, names: Iterable[str], folder: Path) -> list[Path]:
    """Those of a split file, in order."""
    return sorted(folder / part for part in names if PART.search(part) and PART.sub("", part) == name)
