"""A kill, or a terminal that closes, leaves the terminal as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("no signals of this kind, and no pty", allow_module_level=True)

import pty
import termios

MODES = {"alternate screen": b"\x1b[?1049", "mouse": b"\x1b[?1000"}
READY = 30.0  # seconds at most


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_wizard_restores_the_terminal(tmp_path: Path, number: int) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm-256color", "PYTHONPATH": os.getcwd()}
        os.execve(sys.executable, [sys.executable, "-m", "tmerge_tui"], environment)
    written = b""

    def read_until(done: bytes) -> None:
        nonlocal written
        end = time.monotonic() + READY
        while done not in written and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    written += os.read(terminal, 65536)
                except OSError:
                    return

    read_until(b"\x1b[?1000h")
    read_until(b"tmerge")
    os.kill(pid, number)
    read_until(b"\x1b[?1049l")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + number
    for name, mode in MODES.items():
        assert 0 <= written.rfind(mode + b"h") < written.rfind(mode + b"l"), name
    assert termios.tcgetattr(terminal)[3] & termios.ECHO
    os.close(terminal)
