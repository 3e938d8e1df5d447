"""Memory, cores and disks: what is too little, what cannot be written, where no program can start."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tmerge_tui import bundle, edition, machine
from tmerge_tui.commands.doctor import resources
from tmerge_tui.commands.doctor.finding import Level
from tmerge_tui.machine import Memory

GB = 10**9


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what every disk has free."""

    def put(free: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2e12, used=0, free=free))

    return put


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The terminal part of a binary whose engine of 900 MB is not unpacked; the folder it will go to."""
    whole = edition.Edition("0.1.0", engine=edition.Engine("0" * 64, 300 * 10**6, 900 * 10**6, 9))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(bundle, "edition", lambda: whole)
    monkeypatch.setattr(resources, "edition", lambda: whole)
    monkeypatch.setenv("TMERGE_CACHE", str(tmp_path / "cache"))
    return bundle.cache_folder()


def test_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: Memory(64 * GB, 50 * GB))
    told = resources.memory()
    assert (told.found, told.level) == ("50 GB free of 64 GB", Level.OK)


def test_a_container_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: Memory(64 * GB, 3 * GB, 4 * GB, "container"))
    told = resources.memory()
    assert told.found == "3 GB free of 4 GB that the container allows (the machine has 64 GB)"
    assert told.level is Level.PROBLEM and "set memory: in the recipe" in told.advice


def test_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0, free=0))
    assert resources.swap().found == "none"
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=8 * GB, free=6 * GB))
    assert resources.swap().found == "6 GB free of 8 GB"


def test_more_cores_seen_than_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: (16, None))
    assert (resources.cores().found, resources.cores().level) == ("16", Level.OK)
    monkeypatch.setattr(machine, "cores", lambda: (16, 2.5))
    told = resources.cores()
    assert told.level is Level.PROBLEM and told.advice.startswith("set OMP_NUM_THREADS=2:")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert resources.cores().level is Level.OK


def test_every_folder_of_ours_is_looked_at(room: Callable[[float], None]) -> None:
    room(1e12)
    told = list(resources.disks())
    assert [one.what for one in told] == ["disk here", "hub cache", "temporary files", "own files"]
    assert all(one.level is Level.OK and one.found.endswith(": 1 TB free") for one in told), told


def test_full_disks(room: Callable[[float], None]) -> None:
    room(1e6)
    advice = {one.what: one.advice for one in resources.disks()}
    assert "output:" in advice["disk here"] and "HF_HOME" in advice["hub cache"]
    assert "TMPDIR" in advice["temporary files"] and "XDG_STATE_HOME" in advice["own files"]


def test_a_folder_that_is_not_there_yet_counts_as_the_one_above(tmp_path: Path, room: Callable[[float], None]) -> None:
    room(1e12)
    told = resources.disk("cache", tmp_path / "a" / "b", 0, "no")
    assert told.level is Level.OK and told.facts["writable"] and not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By trying, since root may write where permissions say no, and no one on a disk that is read-only."""

    def refused(**options: object) -> None:
        raise OSError(30, "Read-only file system")

    assert resources.disk("cache", tmp_path, 0, "elsewhere").level is Level.OK
    assert list(tmp_path.iterdir()) == [], "trying leaves nothing behind"
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    told = resources.disk("cache", tmp_path, 0, "elsewhere")
    assert told.found.endswith(", cannot be written") and told.advice == "elsewhere" and not told.facts["writable"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert not resources.disk("cache", tmp_path, 0, "elsewhere").facts["writable"]


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    told = next(one for one in resources.disks() if one.what == "temporary files")
    assert told.level is Level.MISSING and "TMPDIR" in told.advice


def test_the_engines_folder(engine: Path, room: Callable[[float], None]) -> None:
    room(1e12)
    told = resources.engine()
    assert told.found == f"{engine}: 1 TB free, unpacked at the first run (900 MB)" and told.level is Level.OK
    bundle.folder().mkdir(parents=True)
    assert resources.engine().found == f"{engine}: 1 TB free, unpacked"
    assert [one.what for one in resources.disks()][-1] == "engine"


def test_no_room_for_the_engine(engine: Path, room: Callable[[float], None]) -> None:
    room(900e6)
    told = resources.engine()
    assert told.level is Level.PROBLEM and "TMERGE_CACHE" in told.advice
    bundle.folder().mkdir(parents=True)
    assert resources.engine().level is Level.OK, "it is there already"


def test_an_engine_that_cannot_start_from_its_disk(
    engine: Path, room: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    room(1e12)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=getattr(os, "ST_NOEXEC", 0)))
    told = resources.engine()
    assert told.level is Level.PROBLEM and told.found.endswith("no program can start there (noexec)")
    assert told.advice == "set TMERGE_CACHE to a folder on another disk"
