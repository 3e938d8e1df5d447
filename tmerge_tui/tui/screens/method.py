"""Step 3: every hyperparameter of the recipe, checked while typing, with what the run will need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from tmerge_tui.errors import TmergeError
from tmerge_tui.extras import needed_by
from tmerge_tui.quantities import duration, size
from tmerge_tui.tui import catalog
from tmerge_tui.tui.draft import SWITCHES, is_expert, options
from tmerge_tui.tui.screens.page import WizardPage
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.toggles import OneOf

GROUPS = (
    ("transport", "Feature and layer plans"),
    ("fusion", "Weights from plans"),
    ("adaptation", "Training after the merge"),
    ("evaluation", "What is measured"),
    ("", "This run"),
)
ELSEWHERE = ("source", "target", "calibration", "output")  # chosen on other screens
CHOICES = "evaluation.choices"  # objects, when they say more than a path: those are not for a line of text
QUIET = 0.5  # seconds without a change before the estimate is made anew


class MethodScreen(WizardPage):
    heading = "Method"
    sub_heading = "every default is the paper's or a safe one"
    step = "method"
    tips = "Arrows choose on a line of options, space takes one of several. An empty field takes its default."

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f2", "expert", "Expert view", id="method.expert", tooltip="Show or hide the settings few people change"
        ),
        Binding("f3", "defaults", "Defaults", id="method.defaults", tooltip="Take back every change on this screen"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.expert = False
        self.lacking: dict[str, str] = {}  # extras that are not installed: what to do

    def body(self) -> ComposeResult:
        with VerticalScroll(id="fields", can_focus=False):
            for section, title in GROUPS:
                shown = [name for name in _fields(section) if self._shows(name)]
                if shown:
                    yield Static(title, classes="group")
                for name in shown:
                    value = self.wizard.draft.get(name)
                    if name == CHOICES and any(isinstance(choice, dict) for choice in value):
                        files, them = ("file", "it") if len(value) == 1 else ("files", "them")
                        yield Static(
                            f"{len(value)} {files} of questions, as the recipe file has {them}", classes="field"
                        )
                    else:
                        yield OptionField(name, value)
        yield Static("", id="estimate")
        yield from self.buttons()

    def on_mount(self) -> None:
        self.query(OptionField).first().query("Input, AnyOf, OneOf").first().focus()
        self.check_step()
        self.estimate()
        self.ask_for_extras()

    def _shows(self, name: str) -> bool:
        """Not what belongs to a section that is off; what few people change only when asked for, or in use."""
        draft = self.wizard.draft
        return draft.offers(name) and (self.expert or not is_expert(name) or (name in SWITCHES and draft.get(name)))

    async def on_option_field_changed(self, event: OptionField.Changed) -> None:
        self.wizard.change(event.name, event.value)
        if event.name in SWITCHES:  # fields come or go
            await self.recompose()
            switch = next(field for field in self.query(OptionField) if field.option == event.name)
            switch.query_one(OneOf).focus()
        self.check_step()
        self.estimate()

    def check_step(self) -> str:
        said = super().check_step()
        for field in self.query(OptionField):
            field.show_problem(self.wizard.draft.problem_of(field.option), self._note(field.option))
        return said

    def _note(self, option: str) -> str:
        """That the chosen value needs a package which is not installed."""
        extra = needed_by(option, self.wizard.draft.get(option))
        return f"needs the extra {extra}: {self.lacking[extra]}" if extra in self.lacking else ""

    @work(exclusive=True, group="extras", exit_on_error=False)
    async def ask_for_extras(self) -> None:
        """Of the helper process, whose packages are those of the run."""
        with contextlib.suppress(TmergeError):  # of a helper that does not start, the estimate says it
            self.lacking = await self.wizard.probe.ask("extras")
            self.check_step()

    async def action_expert(self) -> None:
        self.expert = not self.expert
        await self.recompose()
        self.on_mount()

    async def action_defaults(self) -> None:
        for name in [name for name in self.wizard.draft.values if name in options() and not _elsewhere(name)]:
            self.wizard.change(name, None)
        self.wizard.goto("method")

    @work(exclusive=True, group="estimate", exit_on_error=False)
    async def estimate(self) -> None:
        """Time, memory and disk, from the helper process."""
        await asyncio.sleep(QUIET)
        shown = self.query_one("#estimate", Static)
        draft = self.wizard.draft
        data = {**draft.data(), "output": draft.get("output") or "runs/new"}
        data.setdefault("calibration", {"path": "text.txt"})
        names = {role: str(draft.get(f"{role}.model") or "") for role in ("source", "target")}
        try:
            if not all(names.values()):
                shown.update(Content.styled("an estimate needs both models", "$foreground 60%"))
                return
            found = {role: await asyncio.to_thread(catalog.resolve, name) for role, name in names.items()}
            models = {role: catalog.model_args(one) for role, one in found.items()}
            said = await self.wizard.probe.ask("estimate", recipe=data, **models)
        except TmergeError as error:
            shown.update(Content.styled(f"no estimate: {error.found.splitlines()[0]}", "$warning"))
            return
        shown.update(
            Content.assemble(
                ("about ", "$foreground 60%"),
                (duration(said["seconds"]), "bold"),
                (f" on {said['device']}   memory ", "$foreground 60%"),
                (size(said["memory"]), "bold"),
                ("   disk ", "$foreground 60%"),
                (size(said["disk"]), "bold"),
                ("   download " if said["download"] else "", "$foreground 60%"),
                (size(said["download"]) if said["download"] else "", "bold"),
            )
        )


def _fields(section: str) -> Iterator[str]:
    for name in options():
        if not _elsewhere(name) and (name.startswith(f"{section}.") if section else "." not in name):
            yield name


def _elsewhere(name: str) -> bool:
    return name.partition(".")[0] in ELSEWHERE
