"""Every key of the screen it was opened on, and one paragraph about that screen."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from tmerge_tui.tui.widgets.toosmall import TooSmall


class KeysScreen(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q,enter", "dismiss", "Close", id="help.close", key_display="esc"),
    ]

    def __init__(self, about: Screen) -> None:
        super().__init__()
        self.about = about

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog -help"):
            yield Static("Keys", classes="dialog-title")
            tips = getattr(self.about, "tips", "")
            if tips:
                yield Static(tips, classes="dialog-text", markup=False)
            yield Static(Content("\n").join(self._lines()), classes="dialog-text")
        yield TooSmall()

    def _lines(self) -> list[Content]:
        rows: dict[str, tuple[list[str], str]] = {}
        for active in self.about.active_bindings.values():
            binding = active.binding
            if not binding.description or binding.system:
                continue
            text = binding.description + (f": {binding.tooltip}" if binding.tooltip else "")
            rows.setdefault(text, ([], ""))[0].append(self.app.get_key_display(binding))
        rows.setdefault("Next and previous field", ([], ""))[0].append("tab, shift+tab")
        rows.setdefault("Everything, by name", ([], ""))[0].append("^p")
        return [
            Content.assemble((f"{' '.join(dict.fromkeys(keys)):>16}  ", "$accent"), text)
            for text, (keys, _) in rows.items()
        ]
