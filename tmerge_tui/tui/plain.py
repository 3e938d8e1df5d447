"""The last thing between a screen and the terminal: no character from elsewhere leaves that the terminal would obey."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from tmerge_tui.visible import without


class Plain(LineFilter):
    """Takes what is no text out of every line, whichever widget has drawn it. Such characters take no cell."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [part if part.control else part._replace(text=without(part.text)) for part in segments]
