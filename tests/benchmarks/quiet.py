"""Bytes a second that the wizard sends to a terminal of 160 x 50 while nothing changes, on each screen.

    python -m tests.benchmarks.quiet [seconds]

Prints one JSON object: screen -> bytes a second.
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

ESCAPE, TAB, F1 = "\x1b", "\t", "\x1bOP"
KEYS = {  # pressed one by one, each screen from the one before
    "home": [],
    "result": [TAB, "\r"],
    "run": ["l"],
    "models": [ESCAPE, "n"],
    "presets": [ESCAPE, "p"],
    "review": [ESCAPE, "d"],
    "help": [F1],
}
SETTLE = 15.0  # seconds until a screen has read what it shows


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
            watch(ours, SETTLE)
            found[name] = round(watch(ours, seconds) / seconds)
        wizard.kill()
        wizard.wait()
    assert bundle.is_ready()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
