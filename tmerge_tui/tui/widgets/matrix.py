"""A matrix as coloured half-block cells with axes and a scale: layer costs, layer plans, transport plans.

One terminal cell shows two matrix rows (▀: upper in the foreground, lower in the background). A small matrix is drawn
in larger cells, a large one is sampled. Without colour each cell is a glyph of growing ink. Only changed lines are
redrawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tmerge_tui.tui import ramp

EMPTY = -1  # a cell that is not known yet
MARK = "╳"  # on the chosen cell
LEFT = 5  # columns of the row axis
Levels = list[list[int]]


class Matrix(Widget):
    """Rows are target layers or channels, columns source layers or channels."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"matrix--faint"}

    def __init__(self, rows: str = "target", columns: str = "source", waiting: str = "", id: str | None = None) -> None:
        super().__init__(id=id)
        self.row_name, self.column_name, self.waiting = rows, columns, waiting
        self.levels: Levels = []
        self.low = self.high = 0.0
        self.caption = ""
        self.numbered = True  # axes count rows and columns; a pooled plan has only ends
        self.row_count = self.column_count = 0
        self.marked: tuple[int, int] | None = None  # a cell drawn as chosen
        self._drawn: dict[int, Strip] = {}  # lines as they stand on the screen

    def show(self, values: Sequence[Sequence[float | None]], caption: str = "") -> None:
        """Numbers, None where not known yet; the scale spans those that are known."""
        known = [v for row in values for v in row if v is not None]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        levels = [[EMPTY if v is None else ramp.step(v, low, high) for v in row] for row in values]
        self._take(levels, (low, high), caption, numbered=True)

    def show_cells(self, rows: int, columns: int, cells: bytes, low: float, high: float, caption: str = "") -> None:
        """A pooled plan as its event carries it: rows * columns bytes, 0 = low, 255 = high.

        `low` and `high` are log10 of the mass over that of the uniform plan; the scale says how many times it is.
        """
        levels = [[cells[r * columns + c] >> 4 for c in range(columns)] for r in range(rows)]
        self._take(levels, (low, high), caption, numbered=False)

    def clear(self, waiting: str = "") -> None:
        self.waiting = waiting or self.waiting
        self._take([], (0.0, 0.0), "", numbered=True)

    def _take(self, levels: Levels, span: tuple[float, float], caption: str, numbered: bool) -> None:
        """Redraws the lines that differ."""
        self.levels, self.caption, self.numbered = levels, caption, numbered
        self.low, self.high = span
        self.row_count, self.column_count = len(levels), len(levels[0]) if levels else 0
        before, self._drawn = self._drawn, {}
        for y in range(self.size.height):
            if before.get(y) != self.render_line(y):
                self.refresh(Region(0, y, self.size.width, 1))

    def notify_style_update(self) -> None:
        """Another theme, or the focus: every line has other colours."""
        self._drawn = {}
        super().notify_style_update()

    @property
    def faint(self) -> Style:
        """Of axes and captions: the theme's muted ink, which can be read."""
        return self.get_component_rich_style("matrix--faint")

    def on_resize(self) -> None:
        """The compositor may have painted lines of the old size before this came."""
        self._drawn = {}
        self.refresh()

    def render_line(self, y: int) -> Strip:
        if y not in self._drawn:
            self._drawn[y] = self._line(y)
        return self._drawn[y]

    def _line(self, y: int) -> Strip:
        width, height = self.size
        plain = self.rich_style
        if not self.levels:
            text = self.waiting if y == height // 2 else ""
            return Strip([Segment(text.center(width)[:width], self.faint)])
        colours = None if self.app.no_color else ramp.colours(self.app.console.color_system)
        area_width, area_height = max(width - LEFT, 1), max(height - 3, 1)
        halves = 2 if colours else 1
        across = _scale(self.column_count, area_width)
        down = _scale(self.row_count, area_height * halves)
        tall = -(-len(down) // halves)
        if y == 0:
            return self._text(f"{self.caption}", plain)
        if y <= tall:
            cells = self._cells(y - 1, across, down, colours, plain)
            return Strip([self._label(y - 1, down, halves, plain), *cells]).adjust_cell_length(width, plain)
        if y == tall + 1:
            return self._text(self._axis(across), self.faint)
        if y == tall + 2:
            return self._scale_line(colours, plain)
        return Strip.blank(width, plain)

    def _cells(
        self, y: int, across: list[int], down: list[int], colours: tuple[Color, ...] | None, plain: Style
    ) -> list[Segment]:
        halves = 2 if colours else 1
        lines = down[y * halves : (y + 1) * halves]
        column = self.marked[1] if self.marked is not None and self.marked[0] in lines else None
        if colours is None:
            row = self.levels[lines[0]]
            marks = (MARK if c == column else "·" if row[c] == EMPTY else ramp.glyph(row[c]) for c in across)
            return [Segment("".join(marks), plain)]
        upper = self.levels[lines[0]]
        lower = self.levels[lines[1]] if len(lines) > 1 else None
        segments = []
        pairs = ((upper[c], EMPTY - 1 if lower is None else lower[c], c == column) for c in across)
        for (top, bottom, marked), run in groupby(pairs):
            text, style = _marked(top, colours) if marked else _block(top, bottom, colours)
            segments.append(Segment(text * len(list(run)), plain + style))
        return segments

    def _label(self, y: int, down: list[int], halves: int, plain: Style) -> Segment:
        """The row number beside its first line; `target` rows are counted from 0 as in the recipe."""
        lines = [down[i] for i in range(y * halves, min((y + 1) * halves, len(down)))]
        previous = down[y * halves - 1] if y else None
        starts = next((row for row in lines if row != previous), None)
        every = max(1, -(-self.row_count * 2 // max(len(down), 1)))
        shown = starts is not None and starts % every == 0 and self.numbered
        text = f"{starts:>{LEFT - 2}} " if shown else " " * (LEFT - 1)
        return Segment(text + "│", self.faint)

    def _axis(self, across: list[int]) -> str:
        """Column numbers under their first column, where they fit; then what the axes are."""
        names = f"{self.row_name} ↓ {self.column_name} →"
        if not self.numbered:
            axis = f"{'':{LEFT - 1}}└ {names}"
            cells = f", {self.row_count} x {self.column_count} cells"
            return axis + cells if len(axis) + len(cells) <= self.size.width else axis
        line = [" "] * len(across)
        free = 0
        for x, column in enumerate(across):
            text = str(column)
            if (x == 0 or across[x - 1] != column) and x >= free and x + len(text) <= len(across):
                line[x : x + len(text)] = text
                free = x + len(text) + 1
        axis = f"{'':{LEFT - 1}}└{''.join(line).rstrip()}"
        return f"{axis}  {names}" if len(axis) + len(names) + 2 <= self.size.width else axis

    def _scale_line(self, colours: tuple[Color, ...] | None, plain: Style) -> Strip:
        low, high = f"{self.low:.3g} ", f" {self.high:.3g}"
        if not self.numbered:
            low, high = f"{10**self.low:.2g} ", f" {10**self.high:.2g} x uniform"
        steps = slice(None, None, 1 if LEFT + len(low) + ramp.STEPS + len(high) <= self.size.width else 2)
        if colours is None:
            bar = [Segment(ramp.GLYPHS[steps], plain)]
        else:
            bar = [Segment(" ", plain + Style(bgcolor=colour)) for colour in colours[steps]]
        faint = self.faint
        return Strip([Segment(" " * LEFT + low, faint), *bar, Segment(high, faint)]).adjust_cell_length(
            self.size.width, plain
        )

    def _text(self, text: str, style: Style) -> Strip:
        return Strip([Segment(text, style)]).adjust_cell_length(self.size.width, style)


class Picker(Matrix, can_focus=True):
    """A matrix with a cell chosen by the arrow keys; enter takes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "step(-1, 0)", "Target layer", show=False),
        Binding("down", "step(1, 0)", "Target layer", show=False),
        Binding("left", "step(0, -1)", "Source layer", show=False),
        Binding("right", "step(0, 1)", "Source layer", show=False),
        Binding("enter", "take", "Show plan", id="picker.take"),
    ]

    @dataclass
    class Moved(Message):
        cell: tuple[int, int]

    @dataclass
    class Taken(Message):
        cell: tuple[int, int]

    @property
    def cursor(self) -> tuple[int, int]:
        return self.marked or (0, 0)

    def show(self, values: Sequence[Sequence[float | None]], caption: str = "") -> None:
        row, column = self.cursor
        self.marked = (min(row, len(values) - 1), min(column, len(values[0]) - 1)) if values else None
        super().show(values, caption)

    def action_step(self, rows: int, columns: int) -> None:
        if self.levels:
            row, column = self.cursor
            self.marked = ((row + rows) % self.row_count, (column + columns) % self.column_count)
            self._drawn = {}
            self.refresh()
            self.post_message(self.Moved(self.marked))

    def action_take(self) -> None:
        if self.levels:
            self.post_message(self.Taken(self.cursor))


def _block(top: int, bottom: int, colours: tuple[Color, ...]) -> tuple[str, Style]:
    """Two stacked cells in one character."""
    if top == EMPTY and bottom <= EMPTY:
        return "·", Style(dim=True)
    if top == EMPTY:
        return "▄", Style(color=colours[bottom])
    if bottom <= EMPTY:
        return "▀", Style(color=colours[top])
    return "▀", Style(color=colours[top], bgcolor=colours[bottom])


def _marked(level: int, colours: tuple[Color, ...]) -> tuple[str, Style]:
    """The chosen cell: its own colour, with a mark that stands out from it."""
    ink = Color.parse("#000000" if level > len(colours) // 2 else "#ffffff")
    return MARK, Style(color=ink, bgcolor=colours[max(level, 0)], bold=True)


def _scale(count: int, room: int) -> list[int]:
    """For every place of the drawing, the index it shows: each as often as fits, or a sample of too many."""
    if count == 0:
        return []
    if count <= room:
        times = min(room // count, 6)
        return [index for index in range(count) for _ in range(times)]
    return [place * count // room for place in range(room)]
