"""The engine of a one-file executable on the command line: unpacking it with progress, going on as it."""

from __future__ import annotations

import sys
import time

from tmerge_tui import bundle
from tmerge_tui.commands.output import complain, say
from tmerge_tui.errors import TmergeError

EVERY = 0.5  # seconds between two lines of progress where there is no terminal


def hand_over(arguments: list[str]) -> int:
    """Goes on as the engine; returns only when that cannot be: the exit code."""
    try:
        unpack()
        bundle.hand_over(arguments)
    except TmergeError as error:
        return complain(error)


def unpack() -> None:
    """Unpacks the engine unless it is there, and says so. Raises StorageError."""
    if bundle.is_ready():
        return
    terminal = sys.stderr.isatty()
    say(f"unpacking the engine into {bundle.folder()}, once")
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= (0.1 if terminal else EVERY):
            last = time.monotonic()
            print(
                f"{chr(13) if terminal else ''}  {100 * done // total:3} %",
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    bundle.unpack(show)
    print("\r  done " if terminal else "  done", file=sys.stderr, flush=True)
