"""Ctrl-C and SIGTERM, from our first instruction on: one line on stderr, and the process is gone with 130 or 143.

No exception is raised: at a random moment it would arrive inside an import, a callback or a library that swallows it or
makes a traceback of it. What must not be cut in two is `held`, what has to be taken back is `undone`, and who has more
to do than to leave (a run to cancel, a terminal to restore) asks `asked` now and then, or takes the signal by `handed`.
Imports next to nothing: it is what `tmerge` runs first.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE = 1.0  # seconds in which a signal may come again: to a process, to its group, by way of the parent
STOPPED = 128  # exit code of a process that signal n has stopped, less n: what a shell says too

_line = "stopped"
_asked: int | None = None
_held: list[object] = []
_undo: list[Callable[[], object]] = []
_taker: Callable[[int], object] | None = None
_since = 0.0


def heed() -> None:
    """From here on the signals mean what this file says. What comes before is the interpreter's."""
    for number in SIGNALS:
        signal.signal(number, _arrived)
    if sys.platform != "win32":  # `hand_over` blocks them, so that none gets lost between two programs
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    atexit.register(_ignore)  # the work is done: nothing is left to stop, and the interpreter takes its handlers down


def block() -> None:
    """Keeps the signals waiting; a program that takes this one's place finds them."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def asked() -> int | None:
    """The exit code to leave with, once this process has been asked to stop; None before."""
    return None if _asked is None else STOPPED + _asked


def explain(line: str) -> None:
    """What is said when the process stops, instead of `stopped`."""
    global _line
    _line = line


@contextmanager
def held() -> Iterator[None]:
    """The block is carried out whole: a signal that comes meanwhile takes effect at its end. Any thread may hold."""
    mine = object()
    _held.append(mine)
    try:
        yield
    finally:
        _held.remove(mine)
        if _asked is not None and _taker is None:
            leave()


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """`undo` is called when the process is stopped inside the block. It runs between any two instructions of it."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


@contextmanager
def handed(taker: Callable[[int], object], *more: signal.Signals) -> Iterator[None]:
    """In the block the first signal, of `more` too, goes to `taker`, which ends the process. Main thread only.

    Another one ends it at once, should the taker be stuck; not within a second, since some are sent twice.
    """
    global _taker
    before = [(number, signal.signal(number, _arrived)) for number in more]
    _taker = taker
    try:
        yield
    finally:
        _taker = None
        for number, handler in before:
            signal.signal(number, handler)


def leave() -> None:
    """Ends the process, as it was asked to, unless some thread holds it: then at the end of that."""
    if _held:
        return
    _ignore()
    for undo in reversed(_undo):
        with suppress(OSError):
            undo()
    with suppress(OSError):  # nobody reads it any more
        os.write(2, f"{os.linesep if os.isatty(2) else ''}{_line}\n".encode(errors="replace"))  # below ^C or a bar
    os._exit(asked() or STOPPED)


def _arrived(number: int, frame: FrameType | None) -> None:
    global _asked, _since
    if _asked is None:
        _asked, _since = number, time.monotonic()
        if _taker is not None:
            _taker(number)
            return
    elif _taker is not None and time.monotonic() - _since < TWICE:
        return
    leave()


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
