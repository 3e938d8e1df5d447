"""The engine in a one-file executable: found in PyInstaller's archive, unpacked once, whole or not at all.

The reference for the archive is PyInstaller's own writer's format, put together here by hand; `build/smoke` tries the
same on a real executable.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from backports import zstd

from tmerge_tui import bundle
from tmerge_tui.edition import Edition, Engine
from tmerge_tui.errors import StorageError

FILES = {"tmerge": b"#!/bin/sh\necho engine $*\n", "_internal/tmerge_tui/assets/demo/recipe.yaml": b"source: x\n"}


def packed() -> bytes:
    """An engine of two files and a link."""
    buffer = io.BytesIO()
    with zstd.ZstdFile(buffer, "w") as out, tarfile.open(fileobj=out, mode="w|") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755 if name == "tmerge" else 0o644
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("_internal/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../tmerge"
        archive.addfile(link)
    return buffer.getvalue()


def executable(path: Path, entries: dict[str, bytes], after: bytes = b"") -> Path:
    """A file that ends in a PyInstaller archive; `after` is what signing puts behind it."""
    body, table = b"", b""
    for name, content in entries.items():
        raw = name.encode() + b"\0"
        raw += b"\0" * (-(bundle.ITEM.size + len(raw)) % 16)
        table += bundle.ITEM.pack(bundle.ITEM.size + len(raw), len(body), len(content), len(content), 0, b"a") + raw
        body += content
    length = len(body) + len(table) + bundle.COOKIE.size
    cookie = bundle.COOKIE.pack(bundle.MAGIC, length, len(body), len(table), 311, b"libpython3.11.so")
    path.write_bytes(b"\x7fELF the bootloader" + body + table + cookie + after)
    return path


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process as the terminal part of an executable; the executable."""
    data = packed()
    file = executable(tmp_path / "tmerge", {"PYZ.pyz": b"modules", bundle.ENTRY: data})
    become(monkeypatch, file, data)
    monkeypatch.setenv("TMERGE_CACHE", str(tmp_path / "cache"))
    yield file
    bundle.payload.cache_clear()


def become(monkeypatch: pytest.MonkeyPatch, file: Path, data: bytes, unpacked: int = 1000) -> None:
    found = Edition("9.9.9", "abc", "CPU", {}, Engine(hashlib.sha256(data).hexdigest(), len(data), unpacked, 3))
    monkeypatch.setattr(bundle, "edition", lambda: found)
    monkeypatch.setattr(sys, "executable", str(file))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    bundle.payload.cache_clear()


def test_from_source_there_is_nothing_to_unpack() -> None:
    assert not bundle.is_split()
    assert bundle.is_ready()
    assert bundle.unpack() == Path(sys.executable) == bundle.executable()
    assert (bundle.assets() / "demo" / "recipe.yaml").exists()
    assert bundle.environment() == dict(os.environ)


def test_unpacks_once_and_counts(split: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert not bundle.is_ready()
    program = bundle.unpack(lambda done, total: seen.append((done, total)))
    assert program == bundle.folder() / bundle.NAME
    assert {name: (bundle.folder() / name).read_bytes() for name in FILES} == FILES
    assert (bundle.folder() / "_internal" / "link").read_bytes() == FILES["tmerge"]
    assert os.access(program, os.X_OK) and not os.access(bundle.assets() / "demo/recipe.yaml", os.X_OK)
    size = bundle.payload().size
    assert seen[-1] == (size, size) and seen == sorted(seen)
    seen.clear()
    assert bundle.is_ready()
    bundle.unpack(lambda done, total: seen.append((done, total)))
    assert not seen


def test_the_archive_may_stand_before_a_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed()
    file = executable(tmp_path / "signed", {bundle.ENTRY: data, "x" * 40: b"1"}, after=b"signature" * 10_000)
    become(monkeypatch, file, data)
    found = bundle.payload()
    assert file.read_bytes()[found.offset : found.offset + found.size] == data
    bundle.payload.cache_clear()


def test_one_unpacks_while_the_others_wait(split: Path) -> None:
    """The lock is that of a file: threads stand here for processes."""
    readers: set[int] = set()

    def count(done: int, total: int) -> None:
        readers.add(threading.get_ident())
        time.sleep(0.02)

    threads = [threading.Thread(target=bundle.unpack, args=(count,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bundle.is_ready()
    assert len(readers) == 1
    assert [path.name for path in bundle.engines()] == [bundle.folder().name]


def test_what_a_killed_process_left_is_cleared(split: Path) -> None:
    part = bundle.folder().with_name(bundle.folder().name + ".part")
    part.mkdir(parents=True)
    (part / "tmerge").write_bytes(b"half")
    assert not bundle.is_ready() and bundle.engines() == []
    assert bundle.unpack().read_bytes() == FILES["tmerge"]
    assert not part.exists()


@pytest.mark.parametrize("at", [0.1, 0.5, 0.99])
def test_a_damaged_executable_is_named_and_leaves_nothing(split: Path, at: float) -> None:
    where = bundle.payload()
    data = bytearray(split.read_bytes())
    data[where.offset + int(where.size * at)] ^= 0xFF
    split.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        bundle.unpack()
    assert not bundle.is_ready()
    assert list(bundle.cache_folder().glob("*")) == [] or not list(bundle.cache_folder().glob("9.9.9*"))


def test_a_truncated_executable_is_named(split: Path) -> None:
    split.write_bytes(split.read_bytes()[:-20])
    with pytest.raises(StorageError, match="damaged"):
        bundle.unpack()


def test_no_room_is_said_with_both_sizes(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, split, packed(), unpacked=10**18)
    with pytest.raises(
        StorageError, match=r"no room for the engine.*MB free\n.*1,000,000,000,050 MB.*\n.*TMERGE_CACHE"
    ):
        bundle.unpack()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_cache_where_no_program_can_start_is_said(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"f_bavail": 10**9, "f_blocks": 10**9, "f_bfree": 10**9, "f_frsize": 4096}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC, **room))
    with pytest.raises(StorageError, match=r"no program can start in .*\(noexec\)\n.*\n.*TMERGE_CACHE"):
        bundle.unpack()
    assert not bundle.is_ready()


def test_a_cache_that_cannot_be_written_is_said(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMERGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot unpack the engine into .*\n.*can be written.*\n.*TMERGE_CACHE"):
        bundle.unpack()


def test_older_engines_go_unless_a_process_runs_from_them(split: Path) -> None:
    idle, busy = (bundle.cache_folder() / name for name in ("1.0.0-idle", "1.1.0-busy"))
    for folder in (idle, busy):
        folder.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "", busy / "tmerge")
    with subprocess.Popen([busy / "tmerge", "60"]) as process:
        try:
            assert bundle.in_use(busy) and not bundle.in_use(idle)
            bundle.unpack()
        finally:
            process.send_signal(signal.SIGKILL)
    assert bundle.engines() == sorted([busy, bundle.folder()])
    assert not bundle.in_use(busy)


def test_a_child_gets_none_of_the_executables_own_settings(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "x")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/_MEI1")
    monkeypatch.setenv("KEPT", "yes")
    found = bundle.environment()
    assert "_PYI_ARCHIVE_FILE" not in found and "LD_LIBRARY_PATH" not in found
    assert found["KEPT"] == "yes" and found["PYINSTALLER_RESET_ENVIRONMENT"] == "1"
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/opt/lib")
    assert bundle.environment()["LD_LIBRARY_PATH"] == "/opt/lib"
    assert "LD_LIBRARY_PATH_ORIG" not in bundle.environment()


def test_a_browser_sees_the_machines_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import webbrowser

    monkeypatch.setattr("sys.frozen", True, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/_MEI1")
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/opt/lib")
    monkeypatch.setenv("_PYI_APPLICATION_HOME_DIR", "/tmp/_MEI1")
    before, seen = dict(os.environ), {}

    def start(address: str) -> bool:
        seen.update(os.environ)
        if "broken" in address:
            raise webbrowser.Error("no browser")
        return True

    monkeypatch.setattr(webbrowser, "open", start)
    assert bundle.open_in_browser("file:///report.html")
    assert seen == bundle.environment() and seen["LD_LIBRARY_PATH"] == "/opt/lib"
    assert not bundle.open_in_browser("file:///broken.html") and dict(os.environ) == before
