"""Standard output is data, standard error is narration; neither moves a terminal's cursor (`visible`)."""

from __future__ import annotations

import os
import sys

from tmerge_tui.errors import TmergeError
from tmerge_tui.system import reader_left
from tmerge_tui.visible import visible


def data(text: str) -> None:
    """Prints a line of result. A reader that has gone (`| head`) ends the printing, not the work."""
    try:
        print(visible(text), flush=True)
    except OSError as error:
        if not reader_left(error):
            raise
        hush()


def say(text: str) -> None:
    """Prints a line for the person watching."""
    print(visible(text), file=sys.stderr, flush=True)


def complain(error: TmergeError) -> int:
    """Prints an error in full; its exit code."""
    say(f"error: {error}")
    return error.exit_code


def hush() -> None:
    """Sends what is still printed nowhere, the flush at exit included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
