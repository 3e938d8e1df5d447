"""The end of a run's log: time and message, long ones wrapped under themselves, warnings in their colour."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from tmerge_tui.tui.widgets.static import Static

Entry = tuple[float, str, str]  # unix seconds, level, message
MARKS = {"warning": "! ", "error": "✗ ", "score": "● "}
STYLES = {"warning": "$warning", "error": "$error", "score": "$primary"}
INDENT = 11  # columns of the time and the mark


class LogPane(VerticalScroll):
    """Stays at the end as lines come, unless one has scrolled away from it."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.entries: tuple[Entry, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static("")

    def show(self, entries: Sequence[Entry]) -> None:
        """The whole log as it is now; nothing is drawn when nothing has come."""
        if len(entries) != len(self.entries) or (entries and entries[-1] is not self.entries[-1]):
            self.entries = tuple(entries)
            self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        at_end = self.is_vertical_scroll_end
        room = max(self.scrollable_content_region.width - INDENT, 12)
        lines = [line for entry in self.entries for line in _lines(entry, room)]
        self.query_one(Static).update(Content("\n").join(lines))
        if at_end:
            self.scroll_end(animate=False)


def _lines(entry: Entry, room: int) -> list[Content]:
    t, level, message = entry
    stamp = time.strftime("%H:%M:%S", time.localtime(t))
    first, *more = textwrap.wrap(message, room) or [""]
    style = STYLES.get(level, "")
    head = Content.assemble((f"{stamp} ", "$text-muted"), (f"{MARKS.get(level, '  ')}{first}", style))
    return [head, *(Content.styled(" " * INDENT + line, style) for line in more)]
