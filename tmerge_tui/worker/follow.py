"""Following a run from outside: its events as they come, how it ended, and how to stop it. Needs no torch.

The event file is the only channel. A run has ended when its last word is RunFinished, RunFailed or RunInterrupted, or
when its worker is gone without one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from tmerge_tui.errors import RunFolderError, WorkerError
from tmerge_tui.events import (
    Event,
    Line,
    ResourceSample,
    RunFailed,
    RunFinished,
    RunInterrupted,
    StageFinished,
    StageStarted,
    decode,
)
from tmerge_tui.run_folder import RunDir
from tmerge_tui.system import KILLED, STOPPED_BY_FORCE, ask_to_stop, insist, kill
from tmerge_tui.worker import lock
from tmerge_tui.worker.journal import BLOCK, FINAL, Journal

POLL = 0.05  # seconds between two looks at the file
GRACE = 0.8  # seconds between asking and killing: a cancelled run is gone within a second
TAKEN = 10.0  # seconds in which the system ends a killed process, on a busy machine too
REPORT = "report.json"  # of a run that came to its end
CHUNK = 1 << 20  # bytes read in one look, so that a long log does not freeze who reads it

Final = RunFinished | RunFailed | RunInterrupted
State = Literal["new", "running", "finished", "failed", "interrupted", "crashed"]


class Started(Protocol):
    """A worker this process has started: spawn.Handle."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...


@dataclass(frozen=True)
class Ended:
    """How a run ended: its last event, or the error of a worker that died without one."""

    event: Final | None
    error: WorkerError | None = None

    @property
    def exit_code(self) -> int:
        if isinstance(self.event, RunFinished):
            return 0
        if isinstance(self.event, RunInterrupted):
            return 130
        return self.event.exit_code if self.event is not None else WorkerError.exit_code


class EventFile:
    """Reads an event file while it grows; never blocks."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset  # bytes consumed: always a whole number of lines

    @classmethod
    def at_end(cls, path: Path) -> EventFile:
        """Of what comes from now on, and nothing of what is there."""
        file = cls(path)
        while file._read_lines():
            pass
        return file

    def read_new(self) -> list[Line]:
        """Events completed since the last call, about a megabyte at most; empty when there are none."""
        return [line for raw in self._read_lines() if (line := decode(raw.decode("utf-8", "replace"))) is not None]

    def caught_up(self) -> bool:
        """Whether no complete line is left to read."""
        before = self.offset
        try:
            return not self._read_lines()
        finally:
            self.offset = before

    def _read_lines(self) -> list[bytes]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(CHUNK)
                while data and b"\n" not in data and (more := file.read(CHUNK)):
                    data += more
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self.offset += end
        return data[:end].splitlines()


class Follower:
    """The events of a run and its end, without blocking: call `poll` a few times a second until `ended`.

    To see every event of a run you start yourself and none of an earlier one, make the follower first
    (`from_start=False`), then set `worker` to what `spawn.start` returned.
    """

    def __init__(self, run: RunDir, from_start: bool = True, worker: Started | None = None) -> None:
        self.run = run
        self.worker = worker
        self.ended: Ended | None = None
        self.file = EventFile(run.events) if from_start else EventFile.at_end(run.events)
        self._final: Final | None = None
        self._stage = ""
        self._log_start = run.log.stat().st_size if run.log.exists() else 0

    def poll(self) -> list[Line]:
        """New events; sets `ended` once there will be no more."""
        alive = self._alive()  # asked first: a worker may write its last word and leave between the two questions
        lines = self.file.read_new()
        for line in lines:
            self._note(line.event)
        if self.ended is None and self.caught_up():
            if self._final is not None:
                self.ended = Ended(self._final)
            elif not alive:
                self.ended = Ended(None, self._death())
        return lines

    def caught_up(self) -> bool:
        """Whether every event that is there has been read."""
        return self.file.caught_up()

    def _note(self, event: Event) -> None:
        if isinstance(event, FINAL):
            self._final = event
        elif not isinstance(event, ResourceSample):
            self._final = None
        if isinstance(event, StageStarted):
            self._stage = event.label
        elif isinstance(event, StageFinished):
            self._stage = ""

    def _alive(self) -> bool:
        return self.worker.returncode is None if self.worker is not None else lock.holder(self.run) is not None

    def _death(self) -> WorkerError:
        code = self.worker.returncode if self.worker is not None else None
        during = f" during the stage '{self._stage}'" if self._stage else ""
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}{during}"
        elif code is not None:
            how = f"left with exit code {code if code < 256 else hex(code)}{during}"  # Windows has 0xc0000005
        else:
            how = f"is gone{during}"
        out_of_memory = code in (None, KILLED)
        advice = (
            "it was most likely out of memory: lower calibration.batch_size or set memory; " if out_of_memory else ""
        )
        return WorkerError(
            f"the worker process {how} without saying why{_last_lines(self.run.log, self._log_start)}",
            "an end that the worker reports itself",
            f"{advice}run the same command to continue: finished pieces are kept; details are in {self.run.log}",
        )


def follow(run: RunDir, from_start: bool = True, worker: Started | None = None) -> Iterator[Line | Ended]:
    """Events of `run` as they come, then how it ended. Blocks between events, polling every 50 ms."""
    follower = Follower(run, from_start, worker)
    while follower.ended is None:
        yield from follower.poll()
        if follower.ended is None:
            time.sleep(POLL)
    yield follower.ended


def final_word(run: RunDir) -> Final | None:
    """The event that ended the run, if its last word is one."""
    word = last_word(run.events)
    return word if isinstance(word, FINAL) else None


def state_of(run: RunDir) -> State:
    """What a list of runs shows. Cheap: reads the tail of the event file and the lock.

    A run that has its report stays finished, whatever was tried in its folder later: `later_attempt` tells of that.
    """
    alive = lock.holder(run) is not None
    word = last_word(run.events)
    if isinstance(word, RunFinished) or (word is not None and not alive and has_report(run)):
        return "finished"
    if alive and not isinstance(word, FINAL):
        return "running"
    if isinstance(word, RunFailed):
        return "failed"
    if isinstance(word, RunInterrupted):
        return "interrupted"
    return "new" if word is None else "crashed"


def has_report(run: RunDir) -> bool:
    return (run.path / REPORT).is_file()


def later_attempt(run: RunDir) -> str:
    """How something that was tried after the report was written has ended, in a line; empty when nothing was."""
    word = last_word(run.events)
    if word is None or isinstance(word, RunFinished) or not has_report(run):
        return ""
    if isinstance(word, RunFailed):
        return f"a later attempt failed: {word.message.splitlines()[0] if word.message else word.kind}"
    if isinstance(word, RunInterrupted):
        return "a later attempt was stopped"
    return "another run is going on here" if lock.holder(run) is not None else "the worker of a later attempt died"


def cancel(run: RunDir, worker: Started | None = None) -> bool:
    """Stops the worker of `run`: SIGTERM to its process group, SIGKILL after 0.8 s. False when none is running.

    On Windows a file in the run folder asks it, and its process tree is ended after the same time.

    Raises RunFolderError when it runs on another machine.
    """
    held = lock.holder(run)
    if held is not None and not held.here:
        raise RunFolderError(
            f"the worker of {run.path} runs on {held.host}", "a run of this machine", f"run this command on {held.host}"
        )
    if worker is not None and worker.returncode is None:
        started: Started = worker
        pid, alive = started.pid, lambda: started.returncode is None
    elif held is not None:
        other = held
        pid, alive = other.pid, lambda: lock.is_alive(other.pid, other.started)
    else:
        return False
    try:
        if not _ends(partial(ask_to_stop, pid, run.stop), alive, GRACE):
            _ends(partial(kill, pid), alive, TAKEN)
            if final_word(run) is None and last_word(run.events) is not None:
                _record_kill(run)
    finally:
        with suppress(OSError):  # it names this worker, and no other heeds it
            insist(lambda: run.stop.unlink(missing_ok=True))
    return True


def _ends(end: Callable[[], None], alive: Callable[[], bool], patience: float) -> bool:
    """Calls `end` and waits; whether the process is gone."""
    try:
        end()
    except ProcessLookupError:
        return True
    deadline = time.monotonic() + patience
    while alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _record_kill(run: RunDir) -> None:
    """The killed worker could not say it was cancelled. It is gone, so its place as the one writer is free."""
    lock.acquire(run)
    try:
        journal = Journal(run.events)
        journal.emit(RunInterrupted(STOPPED_BY_FORCE))
        journal.close()
    finally:
        lock.release(run)


def last_word(path: Path) -> Event | None:
    """The last event of a file that is not a mere resource sample."""
    try:
        size = path.stat().st_size
    except OSError:
        return None
    span = BLOCK
    while True:
        start = max(0, size - span)
        with open(path, "rb") as file:
            file.seek(start)
            lines = file.read(size - start).split(b"\n")
        whole = lines[:-1] if start == 0 else lines[1:-1]  # the last is torn or empty, the first may be cut
        for raw in reversed(whole):
            line = decode(raw.decode("utf-8", "replace"))
            if line is not None and not isinstance(line.event, ResourceSample):
                return line.event
        if start == 0:
            return None
        span *= 8


def _last_lines(path: Path, start: int, count: int = 3) -> str:
    """The end of what worker.log has got since `start`: there a crash in C or a refused start has left its trace."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, path.stat().st_size - 4096))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()][-count:]
    return "".join(f"\n    {line[:200]}" for line in lines)
