"""The keys of the screen it was opened on, its own first, with one paragraph about that screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Collapsible, Footer

from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toosmall import TooSmall

Row = tuple[str, str]  # keys, what they do


class KeysScreen(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q", "dismiss", "Close", id="help.close", key_display="esc"),
    ]

    def __init__(self, about: Screen) -> None:
        super().__init__()
        self.about = about

    def compose(self) -> ComposeResult:
        own, everywhere, focused = self._rows()
        with VerticalScroll(classes="dialog -help"):
            yield Static("Keys of this screen", classes="dialog-title")
            yield from _table(own)
            tips = getattr(self.about, "tips", "")
            if tips:
                yield Static(tips, classes="dialog-text", markup=False)
            yield Static("On every screen", classes="dialog-title")
            yield from _table(everywhere)
            if focused:
                with Collapsible(title="Where the cursor is now"):
                    yield from _table(focused)
        yield Footer()
        yield TooSmall()

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def _rows(self) -> tuple[list[Row], list[Row], list[Row]]:
        """Of the screen, of every screen, and of the widget that has the focus."""
        found: tuple[dict[str, list[str]], ...] = ({}, {}, {})
        for active in self.about.active_bindings.values():
            binding = active.binding
            if not binding.description or binding.system:
                continue
            place = 0 if active.node is self.about else 1 if active.node is self.app else 2
            if place == 0 and binding.id is None:  # Textual's own: tab, copy
                place = 1
            text = binding.description + (f": {binding.tooltip}" if binding.tooltip else "")
            found[place].setdefault(text, []).append(self.app.get_key_display(binding))
        found[1]["Next and previous field"] = ["tab", "shift+tab"]
        found[1].setdefault("Everything, by name", []).append("^p")
        for name in ("Focus Next", "Focus Previous"):
            found[1].pop(name, None)
        own, everywhere, focused = ([(" ".join(dict.fromkeys(k)), text) for text, k in one.items()] for one in found)
        return own, everywhere, focused


def _table(rows: list[Row]) -> Iterator[Horizontal]:
    for keys, text in rows:
        yield Horizontal(
            Static(keys, classes="help-keys", markup=False), Static(text, classes="help-text", markup=False),
            classes="help-row",
        )  # fmt: skip
