"""What can be known here of Windows and macOS: their branches with the platform's name exchanged, run with real
processes and files, and their rules about open files, watched while the pipeline runs. That the types fit is for mypy
(`make typecheck`).
"""

from __future__ import annotations

import ast
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import tmerge_tui
from tests.engine.pair import make_pair, recipe_of
from tests.waiting import PATIENCE, until
from tmerge_tui import files, system
from tmerge_tui.engine import pipeline
from tmerge_tui.errors import StorageError
from tmerge_tui.events import RunInterrupted, StageStarted
from tmerge_tui.recipe import dump_recipe, make_recipe, paths
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import follow
from tmerge_tui.worker.follow import EventFile, cancel, last_word, state_of
from tmerge_tui.worker.spawn import Handle

PACKAGE = Path(tmerge_tui.__file__).parent
RECIPE = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}}
# A worker that takes itself for one on Windows.
WORKER = """
import sys, types
from tmerge_tui import system
from tmerge_tui.worker.main import main
system.sys = types.SimpleNamespace(platform="win32", stdout=sys.stdout, stderr=sys.stderr)
sys.exit(main(sys.argv[1]))
"""
# What python.exe of a virtual environment does there: it starts the real one and waits for it.
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `tmerge_tui.system` knows of the platform, with the name exchanged."""
    known = SimpleNamespace(platform="win32", stdout=sys.stdout, stderr=sys.stderr)
    monkeypatch.setattr(system, "sys", known)
    return known


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a worker to stop waits until it has."""
    monkeypatch.setattr(follow, "GRACE", PATIENCE)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = RunDir.create(tmp_path / "run")
    folder.recipe.write_text(dump_recipe(make_recipe({**RECIPE, "output": str(folder.path)})), encoding="utf-8")
    return folder


@pytest.fixture
def start(run: RunDir) -> Iterator[Callable[..., Handle]]:
    """Starts a worker with one of the fake pipelines and waits until it is at work; what is left of it is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(fake: str, *through: str) -> Handle:
        with open(run.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *through, "-c", WORKER, str(run.path)],
                env={**os.environ, "TMERGE_PIPELINE": f"tests.worker.fakes:{fake}", "PYTHONPATH": str(PACKAGE.parent)},
                stdout=log,
                stderr=log,
            )
        started.append(process)
        file = EventFile(run.events)
        until(lambda: any(isinstance(line.event, StageStarted) for line in file.read_new()))
        return Handle(process.pid, process)

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


# stopping a worker


@pytest.mark.parametrize("through", [(), ("-c", LAUNCHER)], ids=["plain", "virtual environment"])
def test_a_worker_on_windows_is_asked_to_stop(
    run: RunDir, start: Callable[..., Handle], windows: SimpleNamespace, patient: None, through: tuple[str, ...]
) -> None:
    worker = start("sleeps", *through)
    assert cancel(run, worker)
    assert worker.wait(PATIENCE) == 130
    assert last_word(run.events) == RunInterrupted("request") and state_of(run) == "interrupted"
    assert not run.stop.exists() and not run.lock.exists()


def test_it_is_asked_by_someone_else(
    run: RunDir, start: Callable[..., Handle], windows: SimpleNamespace, patient: None
) -> None:
    worker = start("sleeps", "-c", LAUNCHER)
    assert cancel(run)  # knows the worker's own pid alone, from the lock
    assert worker.wait(PATIENCE) == 130 and last_word(run.events) == RunInterrupted("request")


def test_it_is_killed_with_what_it_has_started_when_it_does_not_listen(
    run: RunDir, start: Callable[..., Handle], windows: SimpleNamespace
) -> None:
    worker = start("holds_interpreter", "-c", LAUNCHER)
    (inner,) = psutil.Process(worker.pid).children()
    assert cancel(run, worker)
    assert worker.wait(PATIENCE) is not None
    assert not inner.is_running() or inner.status() == psutil.STATUS_ZOMBIE
    assert last_word(run.events) == RunInterrupted(system.STOPPED_BY_FORCE) and not run.stop.exists()


def test_a_request_to_another_worker_is_not_heeded(
    run: RunDir, start: Callable[..., Handle], windows: SimpleNamespace
) -> None:
    run.stop.write_text("1", encoding="ascii")  # of a cancellation that was itself killed
    worker = start("sleeps")
    later = EventFile.at_end(run.events)
    until(lambda: later.read_new() or worker.returncode is not None)  # it samples what it uses: a sign of life
    assert worker.returncode is None and state_of(run) == "running"


def test_a_full_disk_leaves_killing(run: RunDir, start: Callable[..., Handle], windows: SimpleNamespace) -> None:
    worker = start("sleeps")
    run.stop.mkdir()  # cannot be written
    assert cancel(run, worker)
    assert worker.wait(PATIENCE) is not None and state_of(run) == "interrupted"


@pytest.mark.parametrize("platform", ["win32", "linux"])
def test_killing_what_is_gone(platform: str, windows: SimpleNamespace) -> None:
    windows.platform = platform
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    with pytest.raises(ProcessLookupError):
        system.kill(child.pid)


def test_a_zombie_that_macos_denies_is_gone_and_a_living_process_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS answers EPERM for a process group whose only members are zombies."""

    def denied(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", denied)
    endless = [sys.executable, "-c", "input()"]
    with subprocess.Popen(endless, stdin=subprocess.PIPE, start_new_session=True) as child:
        with pytest.raises(PermissionError):
            system.kill(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(ProcessLookupError):
            system.kill(child.pid)


# files


def test_windows_is_given_time_to_close_a_file(windows: SimpleNamespace) -> None:
    refusals = [PermissionError(errno.EACCES, "in use")] * 3

    def action() -> str:
        if refusals:
            raise refusals.pop()
        return "done"

    assert system.insist(action) == "done"


@pytest.mark.parametrize(("platform", "tries"), [("win32", range(2, 100)), ("darwin", range(1, 2))])
def test_a_refusal_that_lasts_is_raised(
    windows: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, platform: str, tries: range
) -> None:
    windows.platform = platform
    monkeypatch.setattr(system, "IN_USE", 0.05)
    calls = []

    def refused() -> None:
        calls.append(None)
        raise PermissionError(errno.EACCES, "in use")

    with pytest.raises(PermissionError):
        system.insist(refused)
    assert len(calls) in tries


def test_windows_syncs_files_it_may_write_and_no_folder(
    tmp_path: Path, windows: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As there: a folder cannot be opened, and a handle that only reads cannot be flushed."""
    writable: set[int] = set()
    real_open, real_sync = os.open, os.fsync

    def open_(path: Path, flags: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        handle = real_open(path, flags)
        if flags & os.O_RDWR:
            writable.add(handle)
        return handle

    def sync(handle: int) -> None:
        if handle not in writable:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real_sync(handle)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", sync)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    system.sync(file)
    system.sync(tmp_path)
    assert writable


def test_a_file_in_use_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32"))
    with pytest.raises(StorageError, match="close what has it open"), files.storage(tmp_path):
        raise PermissionError(errno.EACCES, "Access is denied")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_is_replaced_or_removed_while_this_process_has_it_open(tmp_path: Path) -> None:
    """Windows refuses that, also for files mapped into memory, as weights are until the last tensor is gone."""
    pair = make_pair(tmp_path)
    watch.found.clear()
    watch.on = True
    try:
        for alpha in (0.3, 0.5):  # the second replaces the model of the first
            chosen = recipe_of(pair, fusion={"alpha": alpha})
            pipeline.run(chosen, RunDir.create(chosen.output), lambda event: None)
        assert not watch.found
        kept = tmp_path / "kept"
        with open(kept, "wb"):
            kept.unlink()
        assert watch.found == [f"os.remove {kept}"]  # the watch is awake
    finally:
        watch.on = False


class Watch:
    """Notes what is renamed, replaced or removed while this process has it, or something in it, open or mapped."""

    def __init__(self) -> None:
        self.on = False
        self.found: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "os.rename":
            paths = args[:2]
        elif event == "shutil.rmtree" or (event == "os.remove" and args[1] == -1):  # rmtree's own are by descriptor
            paths = args[:1]
        else:
            return
        self.on = False  # what follows is our own
        held = self._held()
        for path in map(os.path.abspath, paths):
            if any(each == path or each.startswith(path + os.sep) for each in held):
                self.found.append(f"{event} {path}")
        self.on = True

    def _held(self) -> set[str]:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        held = {line.split(maxsplit=5)[-1] for line in lines}
        for handle in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # that of listing them
                held.add(os.readlink(f"/proc/self/fd/{handle}"))
        return held


watch = Watch()
sys.addaudithook(watch)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_text_files_name_their_encoding(path: Path) -> None:
    """Without one Windows takes its code page."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name == "open" and owner in ("os", "webbrowser", "tarfile", "RunDir"):
            continue
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        binary = any("b" in mode for mode in modes if set(mode) <= set("rwabx+"))
        method = isinstance(call.func, ast.Attribute)  # a function of ours by that name opens nothing itself
        if (method and name in ("read_text", "write_text")) or name == "fdopen" or (name == "open" and not binary):
            assert any(word.arg == "encoding" for word in call.keywords), f"{path}:{call.lineno}"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (r"C:\models\tiny", True),
        ("D:/models", True),
        (r"..\tiny", True),
        (r"\\server\share\tiny", True),
        ("a/b", False),
    ],
)
def test_windows_paths_are_folders(name: str, folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Paths(PureWindowsPath):
        def expanduser(self) -> Path:
            return Path("/nowhere")

    monkeypatch.setattr(paths, "Path", Paths)
    assert paths.is_folder(name) is folder


# the terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("platform", "stdout", "stderr", "term", "drawn"),
    [
        ("win32", Screen(), io.StringIO(), None, True),
        ("win32", io.StringIO(), Screen(), None, False),
        ("win32", Screen(), Screen(), "dumb", False),
        ("darwin", io.StringIO(), Screen(), "xterm", True),
        ("darwin", Screen(), Screen(), None, False),
        ("linux", Screen(), io.StringIO(), "xterm", False),
    ],
)
def test_where_the_wizard_can_draw(
    windows: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    stdout: io.StringIO,
    stderr: io.StringIO,
    term: str | None,
    drawn: bool,
) -> None:
    windows.platform, windows.stdout, windows.stderr = platform, stdout, stderr
    if term is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", term)
    assert system.can_draw() is drawn


def test_redirected_output_is_utf_8_on_windows(windows: SimpleNamespace) -> None:
    raw = io.BytesIO()
    windows.stdout = io.TextIOWrapper(raw, encoding="cp1252")
    system.write_utf8()
    windows.stdout.write("bits per byte ≤ 2 → better\udc80")
    windows.stdout.flush()
    assert raw.getvalue().decode() == "bits per byte ≤ 2 → better\\udc80"


def test_a_reader_that_left(windows: SimpleNamespace) -> None:
    """Windows says EINVAL where others say EPIPE."""
    assert system.reader_left(OSError(errno.EINVAL, "Invalid argument"))
    assert system.reader_left(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert not system.reader_left(OSError(errno.ENOSPC, "No space left on device"))
    windows.platform = "linux"
    assert not system.reader_left(OSError(errno.EINVAL, "Invalid argument"))


def test_peak_memory(windows: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts the peak in KiB, macOS in bytes; Windows has it from psutil."""
    windows.platform = "linux"
    here = system.peak_memory()
    assert here > 1e7
    windows.platform = "darwin"
    assert system.peak_memory() >= here // 1024 and system.peak_memory() < here // 100
    windows.platform = "win32"
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=7))
    assert system.peak_memory() == 7
