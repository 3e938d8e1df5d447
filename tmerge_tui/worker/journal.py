"""The event file, as its one writer sees it: append-only lines, numbered, whole, and safe against a crash."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tmerge_tui.events import Event, RunFailed, RunFinished, RunInterrupted, StageFinished, encode
from tmerge_tui.files import storage
from tmerge_tui.system import BINARY

FINAL = (RunFinished, RunFailed, RunInterrupted)
SYNCED = (StageFinished, *FINAL)
BLOCK = 1 << 16


class Journal:
    """Appends events to `events.jsonl`; any thread may call `emit`.

    Opening it continues the numbering of earlier runs and cuts off the torn line that a crash may have left.
    The caller holds the run's lock. Raises StorageError when the file cannot be written.
    """

    def __init__(self, path: Path, secrets: Sequence[str] = ()) -> None:
        self.path = path
        self.secrets = secrets  # words that no event may hold
        self.final: Event | None = None  # how the run ended, once it has
        self._lock = threading.Lock()
        with storage(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | BINARY, 0o666)  # less the umask
            self._size = _cut_torn_line(self._file)
            self._seq = _next_number(self._file, self._size)

    def emit(self, event: Event) -> None:
        with self._lock:
            self._append(event)

    def emit_last(self, event: Event, patience: float) -> None:
        """Writes `event`, unless the run has ended already, and lets nothing follow: threads that emit wait for ever.

        For a process about to die. Gives up after `patience` seconds if another thread is stuck in a write.
        """
        if self._lock.acquire(timeout=patience) and self.final is None:
            self._append(event)

    def close(self) -> None:
        with self._lock:
            os.close(self._file)

    def _append(self, event: Event) -> None:
        text = encode(event, self._seq, time.time())
        for secret in self.secrets:
            text = text.replace(secret, "***")
        data = memoryview(text.encode() + b"\n")
        with storage(self.path):
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._file, data[written:])
                if isinstance(event, SYNCED):
                    os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)  # half a line would swallow the next one
                raise
        self._size += len(data)
        self._seq += 1
        if isinstance(event, FINAL):
            self.final = event


def _read(file: int, count: int, start: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)  # what is appended goes to the end all the same
    return os.read(file, count)


def _cut_torn_line(file: int) -> int:
    """Truncates to the last newline; the size that remains."""
    end = size = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - BLOCK)
        newline = _read(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    return end


def _next_number(file: int, size: int) -> int:
    if size == 0:
        return 0
    start, line = size, b""
    while start > 0 and b"\n" not in line[:-1]:
        start = max(0, start - BLOCK)
        line = _read(file, size - start, start)
    try:
        return int(json.loads(line[:-1].rsplit(b"\n", 1)[-1])["seq"]) + 1
    except (ValueError, KeyError, TypeError):  # someone edited the file: any number after all others will do
        return size
