"""Bytes a second that the wizard sends to a terminal of 160 x 50: while nothing changes, on each screen, and in a run.

    python -m tests.benchmarks.quiet [seconds]

Prints one JSON object: screen -> bytes a second. The bounds are IDLE and RUNNING; beyond them it exits with 1.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from tests.tui.fakes import write_run
from tmerge_tui import bundle

ESCAPE, TAB, F1, NEXT = "\x1b", "\t", "\x1bOP", "\x0e"
IDLE, RUNNING = 1_000, 15_000  # bytes a second at most
KEYS = {  # pressed one by one, each screen from the one before
    "home": [],
    "result": [TAB, "\r"],
    "run": ["l"],
    "models": [ESCAPE, "n"],
    "presets": [ESCAPE, "p"],
    "review": [ESCAPE, "d"],
    "help": [F1],
    "method": [ESCAPE, ESCAPE],
    "data": [ESCAPE],
    "a run": [NEXT, NEXT, NEXT],  # of the demo, until it has ended
}
SETTLE = 15.0  # seconds until a screen has read what it shows
LONGEST = 600.0  # seconds of a run


def watch(terminal: int, seconds: float) -> int:
    """Bytes that arrive."""
    end, count = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            count += len(os.read(terminal, 1 << 16))
    return count


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        from tmerge_tui.worker import run_index

        run_index.remember(write_run(Path(folder) / "done").path)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        command = [sys.executable, "-P", "-m", "tmerge_tui"]
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "HF_HUB_OFFLINE": "1"}
        wizard = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder)
        found = {}
        for name, keys in KEYS.items():
            for key in keys:
                os.write(ours, key.encode())
                watch(ours, 2.0)
            if name == "a run":
                found[name] = until_it_ends(ours, Path(folder) / "runs" / "demo" / "report.json")
            else:
                watch(ours, SETTLE)
                found[name] = round(watch(ours, seconds) / seconds)
        wizard.kill()
        wizard.wait()
    assert bundle.is_ready()
    print(json.dumps(found))
    loud = [name for name, rate in found.items() if rate > (RUNNING if name == "a run" else IDLE)]
    sys.exit(f"too much: {', '.join(loud)}" if loud else 0)


def until_it_ends(terminal: int, report: Path) -> int:
    """Bytes a second from now on until the report is there."""
    start, count = time.monotonic(), 0
    while not report.exists() and time.monotonic() - start < LONGEST:
        count += watch(terminal, 1.0)
    if not report.exists():
        sys.exit("the run did not end")
    return round(count / (time.monotonic() - start))


if __name__ == "__main__":
    main()
