"""Asks for everything a push to the Hub needs; private unless the person says otherwise."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input

from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toggles import OneOf
from tmerge_tui.tui.widgets.toosmall import TooSmall


class PushScreen(ModalScreen[tuple[str, bool] | None]):
    """Answers (repository id, private), or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Close", id="push.close")]

    def __init__(self, folder: str, licence: str) -> None:
        super().__init__()
        self.folder, self.licence = folder, licence

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static("Push the merged model to the Hub", classes="dialog-title")
            yield Static(f"{self.folder}\n{self.licence}", classes="dialog-text", markup=False)
            yield Static("repository", markup=False)
            yield Input(placeholder="your-name/model-name", compact=True)
            yield OneOf(("private", "public"), "private")
            with Horizontal(classes="dialog-buttons"):
                yield Button("Push", id="push", variant="primary", compact=True)
                yield Button("Close", id="close", compact=True)
        yield TooSmall()

    @on(Button.Pressed, "#push")
    @on(Input.Submitted)
    def _push(self) -> None:
        repo = self.query_one(Input).value.strip()
        if repo.count("/") != 1 or not all(repo.split("/")):
            self.notify("give it as your-name/model-name", severity="warning")
        else:
            self.dismiss((repo, self.query_one(OneOf).value == "private"))

    @on(Button.Pressed, "#close")
    def action_close(self) -> None:
        self.dismiss(None)
