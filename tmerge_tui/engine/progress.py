"""Progress of one stage as throttled events, and the log that passes events on: what the stages share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tmerge_tui.events import Emit, Event, StageFinished, StageProgressed, StageStarted, Warned

INTERVAL = 0.1  # seconds between two progress events: 10 Hz is all that a screen can show


class Progress:
    """Announces a stage, reports its progress at most ten times a second, and its end.

    Nothing is announced as finished when the block is left by an exception. The rate counts only what this run did:
    units found ready from an earlier run are given to `skip`.
    """

    def __init__(self, emit: Emit, stage: str, label: str, total: int, unit: str) -> None:
        self.emit, self.stage, self.label, self.total, self.unit = emit, stage, label, total, unit
        self.done = 0
        self.worked = 0
        self._last = 0.0

    def __enter__(self) -> Progress:
        self.start = time.monotonic()
        self.emit(StageStarted(self.stage, self.label, self.total, self.unit))
        return self

    def skip(self, units: int = 1) -> None:
        """Units that an earlier run has computed."""
        self.done += units
        self._report("from the earlier run")

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units
        self.worked += units
        self._report(note)

    def _report(self, note: str) -> None:
        now = time.monotonic()
        if now - self._last < INTERVAL and self.done < self.total:
            return
        self._last = now
        rate = self.worked / max(now - self.start, 1e-9) if self.worked else 0.0
        self.emit(StageProgressed(self.stage, self.done, self.total, self.unit, rate, note))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            outcome = "cached" if self.done and not self.worked else "done"
            self.emit(StageFinished(self.stage, time.monotonic() - self.start, outcome))


@dataclass
class Log:
    """Passes events on and remembers what the report repeats."""

    emit: Emit
    timings: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    _labels: dict[str, str] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._labels[event.stage] = event.label
        elif isinstance(event, StageFinished):
            label = self._labels.get(event.stage, event.stage)
            timing = {"stage": event.stage, "label": label, "seconds": event.seconds, "outcome": event.outcome}
            self.timings.append(timing)
        elif isinstance(event, Warned):
            self.warnings.append({"where": event.where, "message": event.message})
        self.emit(event)
