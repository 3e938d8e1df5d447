"""The options of Method as a form: in groups, those of sections that are on, the expert's only when asked for."""

from __future__ import annotations

from collections.abc import Iterator

from textual.app import ComposeResult
from textual.containers import VerticalGroup

from tmerge_tui.tui.draft import SWITCHES, Draft, choices, is_expert, options
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.static import Static

GROUPS = (
    ("transport", "Feature and layer plans"),
    ("fusion", "Weights from plans"),
    ("adaptation", "Training after the merge"),
    ("evaluation", "What is measured"),
    ("", "This run"),
)
ELSEWHERE = ("source", "target", "calibration", "output")  # chosen on other screens
CHOICES = "evaluation.choices"  # objects, when they say more than a path: those are not for a line of text


class Form(VerticalGroup):
    """Composed anew (`recompose`) when fields come or go."""

    def __init__(self, draft: Draft) -> None:
        super().__init__(id="form")
        self.draft = draft
        self.expert = False

    def compose(self) -> ComposeResult:
        own = [(name, f"Options of {name}") for name in choices("method")]  # `offers` leaves the chosen one's
        for section, title in (*GROUPS, *own):
            shown = [name for name in _fields(section) if self._shows(name)]
            if shown:
                yield Static(title, classes="group")
            for name in shown:
                value = self.draft.get(name)
                if name == CHOICES and any(isinstance(choice, dict) for choice in value):
                    files, them = ("file", "it") if len(value) == 1 else ("files", "them")
                    yield Static(f"{len(value)} {files} of questions, as the recipe file has {them}", classes="field")
                else:
                    yield OptionField(name, value)

    def _shows(self, name: str) -> bool:
        """Not what belongs to a section that is off; what few people change only when asked for, or in use."""
        draft = self.draft
        return draft.offers(name) and (self.expert or not is_expert(name) or (name in SWITCHES and draft.get(name)))


def changed(draft: Draft) -> list[str]:
    """What stands otherwise than its default, of all that this form has."""
    return [name for name in draft.values if name in options() and not _elsewhere(name)]


def _fields(section: str) -> Iterator[str]:
    for name in options():
        if not _elsewhere(name) and (name.startswith(f"{section}.") if section else "." not in name):
            yield name


def _elsewhere(name: str) -> bool:
    return name.partition(".")[0] in ELSEWHERE
