"""Ctrl-C and SIGTERM as one KeyboardInterrupt: `timeout` and job queues stop a command as a person does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """The first signal raises KeyboardInterrupt in the block, later ones do nothing: the way out is not disturbed.

    A one-file executable passes Ctrl-C on to its child, which the terminal has told too, so two come at once.
    """
    before = [(number, signal.signal(number, _interrupt)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
