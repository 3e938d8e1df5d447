"""The runs of this machine as a table: filtered, sorted, and repainted only where something has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable

from tmerge_tui.quantities import NONE, duration
from tmerge_tui.tui import human
from tmerge_tui.worker.summary import Summary

MARKS = {
    "running": ("●", "$primary"),
    "finished": ("✓", "$success"),
    "failed": ("✗", "$error"),
    "crashed": ("✗", "$error"),
    "interrupted": ("■", "$warning"),
    "new": ("○", "$text-muted"),
}
VERDICTS = {"helped": "$success", "worse": "$error", "no transfer": "$warning", "no difference": "$text-muted"}
SORTS: dict[str, Callable[[Summary], Any]] = {
    "newest": lambda run: -run.started,
    "best": lambda run: (run.difference is None, run.difference or 0.0),
    "name": lambda run: (run.merge.lower(), -run.started),
    "state": lambda run: (list(MARKS).index(run.state), -run.started),
}
WIDE, BROAD = 100, 140  # columns of the terminal from which on more is said


class RunsTable(DataTable[Content]):
    """Its keys are there while it has the focus and a row; the screen does what they ask for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "screen.resume", "Resume", tooltip="Go on with the selected run; finished pieces are kept"),
        Binding("c", "screen.compare", "Compare", tooltip="Pick this run, then c on another: both side by side"),
        Binding("delete,x", "screen.delete", "Delete", key_display="x", tooltip="Delete the run's folder; asks first"),
        Binding("slash", "screen.filter", show=False),  # the footer has no room for them beside the others
        Binding("s", "screen.sort", show=False),
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="runs", cursor_type="row", zebra_stripes=False)
        self.runs: list[Summary] = []
        self.order = "newest"
        self.query_text = ""
        self._shown: dict[str, list[Content]] = {}
        self._columns: list[tuple[str, int]] = []

    def show(self, runs: list[Summary]) -> None:
        self.runs = runs
        self.draw()

    def listed(self) -> list[Summary]:
        """Those that hold every word of the filter, in order."""
        words = self.query_text.lower().split()
        found = [run for run in self.runs if all(word in _haystack(run) for word in words)]
        return sorted(found, key=SORTS[self.order])

    def draw(self) -> None:
        """Rows that stayed as they were are not touched: an idle screen sends nothing to the terminal."""
        columns = _columns(self.app.size.width)
        rows = {str(run.path): [_cell(run, name, width) for name, width in columns] for run in self.listed()}
        if columns != self._columns:
            self.clear(columns=True)
            for name, width in columns:
                self.add_column(name, width=width, key=name)
            self._columns, self._shown = columns, {}
        if list(rows) != list(self._shown):
            keep = self.selected
            self.clear()
            for key, cells in rows.items():
                self.add_row(*cells, key=key)
            if keep is not None and keep in rows:
                self.move_cursor(row=self.get_row_index(keep))
        else:
            for key, cells in rows.items():
                for (name, _), cell, before in zip(columns, cells, self._shown[key], strict=True):
                    if not cell.is_same(before):
                        self.update_cell(key, name, cell)
        self._shown = rows

    @property
    def selected(self) -> str | None:
        if not self.row_count:
            return None
        return str(self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value)

    @property
    def said(self) -> str:
        """The models and the first line of the report of the run under the cursor."""
        mine = next((run for run in self.runs if str(run.path) == self.selected), None)
        return "" if mine is None else "\n".join(part for part in (mine.merge, mine.headline, mine.note) if part)


def _columns(width: int) -> list[tuple[str, int]]:
    """(name, width) of what a terminal of so many columns has room for."""
    room = width - 8  # borders and padding
    if width >= BROAD:
        fixed = [("State", 13), ("Result", 22), ("Time", 13), ("When", 12)]
        left = room - sum(w + 2 for _, w in fixed) - 4
        return [fixed[0], ("Merge", left // 2), *fixed[1:], ("Folder", left - left // 2)]
    if width >= WIDE:
        fixed = [("State", 13), ("Result", 21), ("Time", 12), ("When", 11)]
        left = room - sum(w + 2 for _, w in fixed) - 2
        return [fixed[0], ("Folder", left), *fixed[1:]]
    state, when = (13, 11) if width >= 76 else (3, 8)
    left = room - (state + when + 21) - 8
    return [("State", state), ("Folder", max(left, 8)), ("Result", 21), ("When", when)]


def _cell(run: Summary, column: str, width: int) -> Content:
    if column == "State":
        mark, style = MARKS[run.state]
        word = "" if width < 8 else f" {run.state}{' !' if run.note else ''}"
        return Content.assemble((mark, style), word)
    if column == "Result":
        if run.note and not run.verdict:
            return Content.styled(run.note[:width], "$warning")
        return Content.styled(run.outcome or NONE, VERDICTS.get(run.verdict, "$text-muted"))
    if column == "Merge":
        return Content(human.shorten(run.merge, width))
    if column == "Time":
        return Content(duration(run.seconds))
    if column == "When":
        when = human.ago(run.started)
        return Content(when if len(when) <= width else when.removesuffix(" ago"))
    return Content(human.tail(_short(run.path), width))


def _short(path: Path) -> str:
    """Relative to the current folder or to home, where that is shorter."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if base in path.parents:
            return f"{prefix}{path.relative_to(base)}"
    return str(path)


def _haystack(run: Summary) -> str:
    return f"{run.source} {run.target} {run.path} {run.state} {run.verdict}".lower()
