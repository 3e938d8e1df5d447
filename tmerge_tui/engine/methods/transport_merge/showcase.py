"""Pictures for whoever watches plans being solved: rare enough to cost next to nothing."""

from __future__ import annotations

import time
from typing import Protocol

from tmerge_tui.engine.optimal_transport.sinkhorn import Solution
from tmerge_tui.events import Convergence, Emit, HeatMap

EVERY = 0.35  # seconds between two heat maps, and between two convergence curves
SHARE = 0.03  # of the stage's time that may go into heat maps


class Drawn(Protocol):
    def heatmap(self, side: str, l: int, m: int) -> HeatMap: ...


class Showcase:
    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.next_curve = self.next_map = 0.0

    def convergence(self, l: int, m: int, side: str, solution: Solution) -> None:
        now = time.monotonic()
        if now >= self.next_curve and solution.violations:
            self.next_curve = now + EVERY
            self.emit(Convergence(l, m, side, list(solution.violations)))

    def heatmap(self, transports: Drawn, side: str, l: int, m: int) -> None:
        start = time.monotonic()
        if start >= self.next_map:
            self.emit(transports.heatmap(side, l, m))
            end = time.monotonic()
            self.next_map = end + max(EVERY, (end - start) / SHARE)
