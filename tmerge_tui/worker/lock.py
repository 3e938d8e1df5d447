"""Who is writing a run: the file `lock` holds pid, start time and host of its worker.

No flock for as long as a run goes on: the file is read by people and by other machines on a shared disk, and a dead
worker needs no clean-up. A lock is live while a process with that pid *and that start time* runs here, so a recycled
pid does not hold a run for ever. The lock of another machine counts as live while events still arrive (its worker
writes one every second). Looking at a lock and taking it over is one step, which `.lock` guards for that instant.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tmerge_tui.errors import RunFolderError
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.run_folder import RunDir
from tmerge_tui.system import insist

SAME_START = 2.0  # seconds by which a start time may differ: the clock it is derived from is adjusted now and then
SILENCE = 60.0  # seconds without an event after which another machine's worker counts as dead


@dataclass(frozen=True)
class Holder:
    pid: int
    started: float  # unix seconds
    host: str

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()


def holder(run: RunDir) -> Holder | None:
    """The live worker of `run`, or None."""
    found = _read(run.lock)
    return found if found is not None and _alive(found, run) else None


def is_alive(pid: int, started: float) -> bool:
    """Whether the process `pid` that was born at `started` still runs; a zombie does not."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) <= SAME_START and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def acquire(run: RunDir) -> None:
    """Makes this process the one worker of `run`, taking over the lock of a dead one.

    Raises RunFolderError when a live worker holds it, StorageError when the lock cannot be written.
    """
    from filelock import FileLock

    me = Holder(os.getpid(), psutil.Process().create_time(), socket.gethostname())
    body = json.dumps(asdict(me)).encode()
    with storage(run.lock), FileLock(run.path / ".lock"):
        refuse_if_held(run)
        write_atomic(run.lock, body)


def release(run: RunDir) -> None:
    """Gives the lock back if it is ours."""
    found = _read(run.lock)
    if found is not None and found.here and found.pid == os.getpid():
        insist(lambda: run.lock.unlink(missing_ok=True))


def refuse_if_held(run: RunDir) -> None:
    """Raises RunFolderError when a live worker writes `run`."""
    found = holder(run)
    if found is not None:
        where, there = "" if found.here else f" on {found.host}", shlex.quote(str(run.path))
        raise RunFolderError(
            f"{run.path} is in use: a run is going on there (process {found.pid}{where})",
            "one run at a time in a folder",
            f"`tmerge watch {there}` follows it, `tmerge cancel {there}` stops it; or choose another output",
        )


def _read(path: Path) -> Holder | None:
    try:
        body = json.loads(path.read_bytes())
        return Holder(int(body["pid"]), float(body["started"]), str(body["host"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(found: Holder, run: RunDir) -> bool:
    if found.here:
        return is_alive(found.pid, found.started)
    try:
        return time.time() - run.events.stat().st_mtime < SILENCE
    except OSError:
        return False
