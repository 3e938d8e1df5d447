"""Two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable

from tmerge_tui.tui import human
from tmerge_tui.tui.screens.page import Page
from tmerge_tui.worker.compare import compare

NAMES = 28  # columns for what is compared


class CompareScreen(Page):
    heading = "Compare"
    sub_heading = "what two runs achieved, and where their recipes differ"
    tips = "Scores are bits per byte on the hold-out: lower is better, and they compare only on the same hold-out."

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Home", id="compare.back"),
    ]

    def __init__(self, first: Path, second: Path) -> None:
        super().__init__()
        self.paths = first, second

    def body(self) -> ComposeResult:
        yield DataTable(id="compared", cursor_type="row")

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        each = max((self.app.size.width - NAMES - 12) // 2, 16)
        table.add_column("", width=NAMES)
        for path in self.paths:
            table.add_column(Text(human.tail(str(path), each)), width=each)
        table.focus()
        self.fill()

    @work(thread=True, exit_on_error=False, group="compare")
    def fill(self) -> None:
        self.app.call_from_thread(self._show, compare(*self.paths))

    def _show(self, sections: list[tuple[str, list[tuple[str, str, str]]]]) -> None:
        table = self.query_one(DataTable)
        for title, rows in sections:
            table.add_row(Content.styled(title, "$primary bold"), "", "")
            for name, first, second in rows or [("none", "", "")]:
                style = "" if first == second else "bold"
                table.add_row(Content(f"  {name}"), Content.styled(first, style), Content.styled(second, style))
