"""Shown instead of a squeezed screen; what runs keeps running."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

COLUMNS, ROWS = 60, 20


class TooSmall(Widget):
    def render(self) -> Content:
        size = self.app.size
        return Content.from_markup(
            f"[b]This terminal is too small[/b]\n\n{size.width} x {size.height} now, {COLUMNS} x {ROWS} needed.\n"
            "Nothing has stopped: enlarge the\nwindow to go on, or ctrl+q to quit."
        )
