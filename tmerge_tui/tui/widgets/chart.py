"""A line chart in braille dots: Sinkhorn's violation on a log axis, a training's loss, bits per byte over alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.widget import Widget

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
LEFT = 9  # columns of the value axis


@dataclass(frozen=True)
class Series:
    """A named line; `style` is a colour of the theme, `mark` stands for it in the legend."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: str = "$primary"
    mark: str = ""  # drawn on every point, so that lines differ without colour


class Chart(Widget):
    """Draws any number of series over one another, with the value axis on the left and its ends in numbers."""

    def __init__(
        self,
        caption: str = "",
        x_name: str = "",
        log: bool = False,
        waiting: str = "",
        id: str | None = None,
        classes: str = "",
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.caption, self.x_name, self.logarithmic, self.waiting = caption, x_name, log, waiting
        self.series: tuple[Series, ...] = ()
        self.level: float | None = None  # a horizontal line to compare with
        self.places: tuple[str, ...] = ()  # names of x = 0, 1, ..., evenly spaced; none: x is a number
        self.number = ".1e" if log else ".4f"

    def show(
        self,
        series: Sequence[Series],
        caption: str | None = None,
        level: float | None = None,
        places: Sequence[str] = (),
    ) -> None:
        self.series = tuple(series)
        self.level, self.places = level, tuple(places)
        self.caption = self.caption if caption is None else caption
        self.refresh()

    def render(self) -> Content:
        width, height = self.size
        points = [p for s in self.series for p in self._usable(s.points)]
        if not points or width < LEFT + 4 or height < 4:
            return Content.styled(self.waiting.center(width), "$text-muted")
        low, high = min(y for _, y in points), max(y for _, y in points)
        if self.level is not None:
            low, high = min(low, self.level), max(high, self.level)
        if high <= low:
            low, high = low - 0.5, high + 0.5
        left, right = min(x for x, _ in points), max(x for x, _ in points)
        if self.places:
            left, right = -0.5, len(self.places) - 0.5
        legend = [Content.styled(f"{s.mark or '━'} {s.name}", s.style) for s in self.series if s.name]
        rows = height - 2 - bool(legend)
        columns = width - LEFT
        box = (left, right, low, high)
        grid, owner, marks = _draw([self._usable(s.points) for s in self.series], box, columns, rows)
        level_row = None if self.level is None else round((high - self.level) / (high - low) * (rows - 1))
        lines = [Content.styled(self.caption, "bold")]
        lines += [self._line(r, rows, grid, owner, marks, low, high, level_row) for r in range(rows)]
        axis = self._places(columns) if self.places else self._ends(left, right, columns)
        lines.append(Content.styled(" " * LEFT + axis, "$text-muted"))
        if legend:
            lines.append(Content.assemble(" " * LEFT, Content("  ").join(legend)))
        return Content("\n").join(lines)

    def _ends(self, left: float, right: float, columns: int) -> str:
        ends = f"{left:g}", f"{right:g}"
        return ends[0] + f" {self.x_name} ".center(max(columns - len(ends[0]) - len(ends[1]), 1)) + ends[1]

    def _places(self, columns: int) -> str:
        """The name of each place below its middle, as many as have room."""
        line = [" "] * columns
        for i, name in enumerate((f"{self.x_name} {self.places[0]}", *self.places[1:])):
            middle = round((i + 0.5) / len(self.places) * columns)
            start = min(max(middle - (len(name) + 1) // 2, 0), columns - len(name))
            if start >= 0 and not "".join(line[max(start - 1, 0) : start + len(name) + 1]).strip():
                line[start : start + len(name)] = name
        return "".join(line)

    def _usable(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """On a log axis, the logarithm; what has none is left out."""
        if not self.logarithmic:
            return [(x, y) for x, y in points if y is not None]
        return [(x, math.log10(y)) for x, y in points if y is not None and y > 0]

    def _line(
        self,
        r: int,
        rows: int,
        grid: list[list[int]],
        owner: list[list[int]],
        marks: dict[tuple[int, int], int],
        low: float,
        high: float,
        level: int | None,
    ) -> Content:
        label = ""
        if r in (0, rows - 1):
            value = high if r == 0 else low
            label = format(10**value if self.logarithmic else value, self.number)
        parts: list[Content | tuple[str, str]] = [(f"{label:>{LEFT - 2}} │", "$text-muted")]
        for column, (dots, who) in enumerate(zip(grid[r], owner[r], strict=True)):
            if dots:
                series = self.series[marks.get((r, column), who)]
                here = series.mark if series.mark and (r, column) in marks else chr(0x2800 + dots)
                parts.append((here, series.style))
            else:
                parts.append(("─", "$border") if r == level else (" ", ""))
        return Content.assemble(*parts)


def _draw(
    series: Sequence[Sequence[tuple[float, float]]], box: tuple[float, float, float, float], columns: int, rows: int
) -> tuple[list[list[int]], list[list[int]], dict[tuple[int, int], int]]:
    """Braille bits per cell, which series owns each cell, and whose point the cells hold that hold one."""
    left, right, low, high = box
    grid = [[0] * columns for _ in range(rows)]
    owner = [[0] * columns for _ in range(rows)]
    marks = {}

    def place(x: float, y: float) -> tuple[int, int]:
        px = 0 if right <= left else round((x - left) / (right - left) * (columns * 2 - 1))
        return px, round((high - y) / (high - low) * (rows * 4 - 1))

    for who, points in enumerate(series):
        previous = None
        for x, y in sorted(points):
            here = place(x, y)
            for px, py in _between(previous or here, here):
                grid[py // 4][px // 2] |= DOTS[py % 4][px % 2]
                owner[py // 4][px // 2] = who
            previous = here
            marks[here[1] // 4, here[0] // 2] = who
    return grid, owner, marks


def _between(a: tuple[int, int], b: tuple[int, int]) -> list[tuple[int, int]]:
    steps = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
    return [
        (round(a[0] + (b[0] - a[0]) * i / steps), round(a[1] + (b[1] - a[1]) * i / steps)) for i in range(steps + 1)
    ]
