"""Which tmerge this is: its version and, in a prebuilt binary, the commit and the libraries inside."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tmerge_tui import __version__

FILE = Path(__file__).parent / "edition.json"  # written by build/binary.py into what is frozen, not there otherwise


@dataclass(frozen=True)
class Engine:
    """The part of the binary that is unpacked before its first use."""

    sha256: str  # of the packed engine
    packed: int  # bytes
    unpacked: int  # bytes
    files: int


@dataclass(frozen=True)
class Edition:
    """`commit` is empty, and `packages` too, where tmerge runs from source or from a wheel."""

    version: str
    commit: str = ""
    build: str = ""  # CPU, CUDA 13.0, ROCm 6.4 or Metal: what its torch was built for
    packages: dict[str, str] = field(default_factory=dict)  # name -> version
    engine: Engine | None = None  # None where nothing has to be unpacked

    def __str__(self) -> str:
        details = ", ".join([f"commit {self.commit}"] * bool(self.commit) + [f"{self.build} build"] * bool(self.build))
        return self.version + (f" ({details})" if details else "")


@cache
def edition() -> Edition:
    """That of this process."""
    if not FILE.exists():
        return Edition(__version__)
    data = json.loads(FILE.read_text(encoding="utf-8"))
    engine = data.pop("engine", None)
    return Edition(**data, engine=Engine(**engine) if engine else None)
