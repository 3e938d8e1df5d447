"""Starts the worker: a process of its own, by exec, in a session of its own.

Not multiprocessing: under Textual its descriptors are invalid, and a fork would carry threads and CUDA along. A session
of its own, so that neither Ctrl-C in the terminal nor a dropped connection reaches it; stopping it is a decision.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tmerge_tui import bundle
from tmerge_tui.errors import StorageError
from tmerge_tui.files import storage
from tmerge_tui.run_folder import RunDir
from tmerge_tui.system import APART
from tmerge_tui.worker import lock, run_index
from tmerge_tui.worker.follow import final_word

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}
# Threads that wait for each other by spinning lose most of a busy machine's time: on two shared cores, small products
# ran 20 times slower than with threads that sleep. Set it yourself and yours is kept.
PATIENT = {"OMP_WAIT_POLICY": "passive"}
LEAVING = 5.0  # seconds a worker that has said its last word may take to unload its libraries


@dataclass(frozen=True)
class Handle:
    """The worker that this process has started."""

    pid: int
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def returncode(self) -> int | None:
        """None while it runs, -9 after SIGKILL."""
        return self.process.poll()

    def wait(self, seconds: float) -> int | None:
        """Its return code, or None if it still runs after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def start(run: RunDir) -> Handle:
    """Starts a worker for the recipe in `run`, and puts the run on the list of this machine.

    Raises RunFolderError when another worker is writing this run, StorageError when worker.log or the engine of
    a one-file executable cannot be written.
    """
    refuse_if_busy(run)
    bundle.unpack()
    with storage(run.log), open(run.log, "ab") as log:
        process = subprocess.Popen(
            [*command(), "_worker", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            close_fds=True,
            start_new_session=True,
            creationflags=APART,
        )
        try:
            run_index.remember(run.path)
        except StorageError as error:  # the run itself is none the worse
            log.write(f"this run is not on the list of runs: {error}\n".encode())
    return Handle(process.pid, process)


def refuse_if_busy(run: RunDir) -> None:
    """Raises RunFolderError when a worker is writing `run`; one that has just ended is given the time to leave."""
    deadline = time.monotonic() + LEAVING
    while lock.holder(run) and final_word(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    lock.refuse_if_held(run)


def command() -> list[str]:
    """This program again, for a hidden command."""
    if getattr(sys, "frozen", False):
        return [str(bundle.executable())]
    return [sys.executable, "-P", "-m", "tmerge_tui"]  # -P: a random.py in the current folder is not ours


def environment() -> dict[str, str]:
    """What a child of ours finds: quiet libraries, threads that sleep while they wait, and this package."""
    found = {**PATIENT, **bundle.environment(), **QUIET}
    if not getattr(sys, "frozen", False):
        package = str(Path(__file__).resolve().parents[2])
        found["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return found
