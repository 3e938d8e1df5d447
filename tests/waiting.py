"""Waiting for what a test needs to see. No test knows a clock: what never comes is ended by pytest's own limit."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 200.0  # seconds for what is waited for outside of Python: fewer than pytest gives a test, so that it is told


def until(seen: Callable[[], object]) -> None:
    """Returns as soon as `seen()` is true."""
    while not seen():
        time.sleep(0.005)
