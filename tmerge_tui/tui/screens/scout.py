"""Both models tried for a minute, over Review: is there anything to carry over, and what will each arm take?"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Footer

from tmerge_tui.errors import TmergeError
from tmerge_tui.events import Line
from tmerge_tui.tui.helper import Probe
from tmerge_tui.tui.widgets.headroom import findings
from tmerge_tui.tui.widgets.stages import Stages
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toosmall import TooSmall
from tmerge_tui.worker.state import RunState

AROUND = 10  # rows of the dialog that are not what was found, and of the footer
DRAW = 0.2  # seconds between two drawings of the progress


class ScoutScreen(ModalScreen[dict[str, Any] | None]):
    """Starts at once. Answers what was found, or None; `probe` is its own process, and ends with it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="scout.close", tooltip="Stops it, if it is still going on"),
        Binding("f9", "close", show=False),
    ]

    def __init__(self, probe: Probe, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.probe, self.recipe = probe, recipe
        self.found: dict[str, Any] | None = None
        self.state = RunState()
        self._drawn = 0.0

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -scout"):
            yield Static("Scout: is there anything to carry over?", classes="dialog-title", markup=False)
            yield Stages()
            with VerticalScroll(id="headroom"):
                yield Static("starting, about a minute; nothing of the recipe is changed", id="found", markup=False)
            with Horizontal(classes="dialog-buttons"):
                yield Button("Fetch the weights and try", id="fetch", compact=True)
                yield Button("Stop", id="close", compact=True)
        yield Footer()
        yield TooSmall()

    def on_mount(self) -> None:
        self.query_one("#fetch").display = False
        self.query_one("#close").focus()
        self.try_out(False)

    def on_resize(self) -> None:
        self.query_one("#headroom").styles.max_height = max(self.app.size.height - AROUND, 3)

    def on_unmount(self) -> None:
        self.probe.kill()

    @work(exclusive=True, group="scout", exit_on_error=False)
    async def try_out(self, download: bool) -> None:
        shown = self.query_one("#found", Static)
        self.query_one("#close", Button).label = "Stop"
        self.query_one(Stages).display = True
        try:
            found = await self.probe.ask("scout", self._told, recipe=self.recipe, download=download)
        except TmergeError as error:
            told = [Content.styled(f"✗ {error.found}", "$error")]
            told += [
                Content(f"{word}: {text}") for word, text in (("needed", error.expected), ("next", error.hint)) if text
            ]
            shown.update(Content("\n").join(told))
        else:
            self.found = found
            shown.update(findings(found, self.query_one("#headroom").content_size.width))
            self.query_one(Stages).display = False
            self.query_one("#fetch").display = bool(found["pending"])
            self.query_one("#headroom").focus()
        self.query_one("#close", Button).label = "Close"

    def _told(self, line: Line) -> None:
        self.state.apply(line)
        now = time.monotonic()
        if now - self._drawn >= DRAW:
            self._drawn = now
            self.query_one(Stages).show(self.state, line.t)

    @on(Button.Pressed, "#fetch")
    def _fetch(self) -> None:
        self.query_one("#fetch").display = False
        self.try_out(True)

    @on(Button.Pressed, "#close")
    def action_close(self) -> None:
        self.dismiss(self.found)
