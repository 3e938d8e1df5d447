"""A question with named answers; escape is the last one, the one that changes nothing."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Footer

from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toosmall import TooSmall

ROOM = 48  # columns for answers side by side; else one under the other


class Ask(ModalScreen[str]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "harmless", "Close", id="ask.close"),
        Binding("left,up", "app.focus_previous", "Previous answer", show=False, id="ask.left"),
        Binding("right,down", "app.focus_next", "Next answer", show=False, id="ask.right"),
    ]

    def __init__(self, title: str, text: str, answers: list[tuple[str, str]], danger: str = "cancel") -> None:
        super().__init__()
        self.heading, self.text, self.answers, self.danger = title, text, answers, danger

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            yield Static(self.text, classes="dialog-text", markup=False)
            room = sum(len(label) + 6 for _, label in self.answers) <= ROOM
            with Horizontal(classes="dialog-buttons" if room else "dialog-buttons -stacked"):
                for name, label in self.answers:
                    button = Button(label, id=f"answer-{name}", compact=True)
                    button.variant = "error" if name == self.danger else "default"
                    yield button
        yield Footer()
        yield TooSmall()

    def on_mount(self) -> None:
        self.query(Button).last().focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(str(event.button.id).removeprefix("answer-"))

    def action_harmless(self) -> None:
        self.dismiss(self.answers[-1][0])
