"""Ratios of one way of doing a thing to another, measured in turns; a benchmark prints each as one line of a table.

Machines differ, and others work on them: what is compared runs in turns in one process, CPU times of that process are
taken, and a ratio is the median over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Name = TypeVar("Name")
MARK = "ratio |"


@dataclass(frozen=True)
class Ratio:
    """Medians of ratios within a round, and what they should be."""

    name: str
    median: float
    low: float
    high: float
    target: float
    at_least: bool = False  # the target is a floor and not a ceiling

    @classmethod
    def of(
        cls, name: str, ours: Sequence[float], theirs: Sequence[float], target: float, at_least: bool = False
    ) -> Ratio:
        """Of the times of two ways, round by round."""
        rounds = [a / b for a, b in zip(ours, theirs, strict=True)]
        return cls(name, statistics.median(rounds), min(rounds), max(rounds), target, at_least)

    @property
    def met(self) -> bool:
        return self.median >= self.target if self.at_least else self.median <= self.target

    def __str__(self) -> str:
        most = "at least" if self.at_least else "at most"
        return (
            f"{MARK} {self.name:<44} | {self.median:6.3f} | {self.low:.3f} to {self.high:.3f} | "
            f"{most} {self.target:g} | {'met' if self.met else 'MISSED'} |"
        )


def in_turns(ways: Mapping[Name, Callable[[], Any]], rounds: int) -> dict[Name, list[float]]:
    """CPU seconds of each way in every round; one round more comes first and warms up."""
    seconds: dict[Name, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds
