"""The frame of a plot: where values come to lie, grid lines with their numbers, names of the axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tmerge_tui.engine.report.svg import line, signed_tick, text, ticks


@dataclass(frozen=True)
class Frame:
    """A rectangle on the drawing, in pixels, and the values at its lower and upper end."""

    left: float
    top: float
    width: float
    height: float
    low: float
    high: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def at_y(self, value: float) -> float:
        return self.top + self.height * (self.high - value) / (self.high - self.low)

    def at_place(self, place: float, places: int) -> float:
        """The middle of one of so many places, evenly spaced."""
        return self.left + self.width * (place + 0.5) / places

    def at_log(self, value: float, low: float, high: float) -> float:
        """On a logarithmic axis from `low` to `high`, all of them above 0."""
        return self.left + self.width * math.log(value / low) / math.log(high / low)

    def levels(self, values: Iterable[float], words: Callable[[float], str]) -> list[str]:
        """A grid line at each value, its number on the left."""
        return [
            line(self.left, self.at_y(v), self.right, self.at_y(v), "grid")
            + text(self.left - 8, self.at_y(v) + 4, words(v), "soft", "end")
            for v in values
        ]

    def below(self, places: Iterable[tuple[float, object]]) -> list[str]:
        """Words under the frame: (x, what stands there)."""
        return [text(x, self.bottom + 18, words, "soft", "middle") for x, words in places]

    def names(self, below: str, beside: str = "") -> list[str]:
        """What the two axes are."""
        said = [text(self.left + self.width / 2, self.bottom + 38, below, "", "middle")]
        if beside:
            said.append(text(14, self.top + self.height / 2, beside, "", "middle", -90))
        return said


def over_alpha(alphas: Sequence[float], differences: Sequence[float], below: str) -> tuple[Frame, list[str]]:
    """The frame of differences to the target over alpha, and its axes; alphas evenly spaced, as they are few."""
    low, high = min(differences), max(differences)
    margin = 0.08 * (high - low or 1e-4)
    frame = Frame(92.0, 40.0, 430.0, 240.0, low - margin, high + margin)
    zero = frame.at_y(0)
    return frame, [
        *frame.levels(ticks(frame.low, frame.high), signed_tick),
        line(frame.left, zero, frame.right, zero, "zero"),
        text(frame.right, zero - 6, "target", "soft", "end"),
        *frame.below((frame.at_place(i, len(alphas)), f"{alpha:g}") for i, alpha in enumerate(alphas)),
        *frame.names(below, "bits per byte minus the target's"),
    ]
