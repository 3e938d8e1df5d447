"""One field of the recipe as a form row: name, editor, unit and equation; below, its meaning or what is wrong.

Everything comes from the recipe itself: kind, choices, default, one-line meaning, equation, unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

from tmerge_tui.tui import draft as drafts
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toggles import AnyOf, OneOf

YES_NO = ("yes", "no")


class OptionField(Vertical):
    """Posts Changed with the value as the draft keeps it."""

    @dataclass
    class Changed(Message):
        name: str
        value: Any

    def __init__(self, name: str, value: Any, placeholder: str = "") -> None:
        super().__init__(classes="field")
        self.option = name
        self.value = value
        self.placeholder = placeholder
        self.wrong = ""
        self.note = ""
        info = drafts.options()[name]
        extra = info.json_schema_extra or {}
        self.meaning = str(info.description)
        self.side_note = "  ".join(part for part in (extra.get("unit"), extra.get("equation")) if part)

    def compose(self) -> ComposeResult:
        with Horizontal(classes="field-row"):
            yield Static(self.option.rpartition(".")[2].replace("_", " "), classes="field-name", markup=False)
            yield self._editor()
            yield Static(self.side_note, classes="field-note", markup=False)
        yield Static(self.below(), classes="field-help")

    def _editor(self) -> Widget:
        kind = drafts.kind(self.option)
        if kind == "switch":
            return OneOf(YES_NO, YES_NO[0] if self.value else YES_NO[1])
        if kind == "choice":
            return OneOf(drafts.choices(self.option), str(self.value))
        if kind == "set":
            return AnyOf(drafts.choices(self.option), self.value or [])
        default = drafts.as_text(drafts.default(self.option))
        return Input(drafts.as_text(self.value), placeholder=self.placeholder or default, compact=True)

    def below(self) -> Content:
        """What is wrong, or worth a warning, else what the field means."""
        if self.wrong:
            return Content.styled(f"✗ {self.wrong}", "$error")
        if self.note:
            return Content.styled(f"! {self.note}", "$warning")
        default = drafts.as_text(drafts.default(self.option))
        return Content.assemble((self.meaning, "$text-muted"), (f"  [{default}]" if default else "", "$text-muted"))

    def show_problem(self, wrong: str, note: str = "") -> None:
        """What is wrong with the value, or worth a warning; both empty when all is well."""
        if (wrong, note) == (self.wrong, self.note):
            return
        self.wrong, self.note = wrong, note
        self.query_one(".field-help", Static).update(self.below())
        self.set_class(bool(wrong), "-wrong")

    def put(self, value: Any) -> None:
        """A value that was not typed here."""
        editor = self.query_one(Input)
        with self.prevent(Input.Changed):
            editor.value = drafts.as_text(value)
        editor.cursor_position = len(editor.value)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(self.option, event.value.strip()))

    @on(OneOf.Changed)
    def _taken(self, event: OneOf.Changed) -> None:
        event.stop()
        value = event.value == YES_NO[0] if drafts.kind(self.option) == "switch" else event.value
        self.post_message(self.Changed(self.option, value))
