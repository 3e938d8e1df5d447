"""The command line in tests: as a process of its own, or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import until
from tmerge_tui.run_folder import RunDir

TMERGE = [sys.executable, "-m", "tmerge_tui"]


def environment(fake: str = "whole", **more: str) -> dict[str, str]:
    return {**os.environ, "TMERGE_PIPELINE": f"tests.worker.fakes:{fake}", "TERM": "xterm", "COLUMNS": "100", **more}


def tmerge(*arguments: str | Path, fake: str = "whole", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TMERGE, *map(str, arguments)], capture_output=True, text=True, env=environment(fake, **more)
    )


@contextmanager
def started(*arguments: str | Path, fake: str = "sleeps") -> Iterator[subprocess.Popen[str]]:
    """The command while it goes on; what is left of it at the end of the block is killed."""
    with subprocess.Popen(
        [*TMERGE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(fake),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(run: RunDir, word: str) -> None:
    until(lambda: run.events.exists() and word in run.events.read_text())


def inside(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """The command in this process, which has torch already: (exit code, stdout, stderr)."""
    from tmerge_tui import cli

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["tmerge", *arguments])
    code = cli.main()
    return code, *capsys.readouterr()
