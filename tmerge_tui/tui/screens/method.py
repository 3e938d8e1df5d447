"""Step 3: every hyperparameter of the recipe, checked while typing, with what the run will need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Input

from tmerge_tui.errors import TmergeError
from tmerge_tui.extras import needed_by
from tmerge_tui.tui.draft import SWITCHES, choices, is_expert, options, titles
from tmerge_tui.tui.needs import ask_needs, told
from tmerge_tui.tui.screens.ask import Ask
from tmerge_tui.tui.screens.page import WizardPage
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
SMALL = 0.025  # epsilon below which plans are solved in the log domain
COUPLED = (
    "plan, the paper's rule, moves about 1e-5 of the norm: such a merge only shrinks rows, and has not beaten its "
    "placebos; barycentric carries weights at their own scale"
)
METHODS = ("method", "compare_methods")  # their sections come and go with them
QUIET = 0.5  # seconds without a change before the estimate is made anew


class MethodScreen(WizardPage):
    heading = "Method"
    sub_heading = "how much is carried over; every default is the paper's"
    step = "method"
    tips = "Arrows choose on a line of options, space takes one of several. An empty field takes its default."

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5", "expert", "Expert", id="method.expert", tooltip="Show or hide the settings few people change"),
        Binding("ctrl+f", "filter", "Find", id="method.filter", tooltip="Only options with these words; escape: all"),
        Binding("f6", "defaults", "Defaults", id="method.defaults", tooltip="Take back every change here; asks first"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.expert = False
        self.unfit: list[str] = []  # problems with the two models at hand
        self.lacking: dict[str, str] = {}  # extras that are not installed: what to do

    def body(self) -> ComposeResult:
        yield Input(placeholder="words of an option or of what it does", id="filter", compact=True)
        with VerticalScroll(id="fields", can_focus=False):
            own = [(name, f"Options of {name}") for name in choices("method")]  # `offers` leaves the chosen one's
            for section, title in (*GROUPS, *own):
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
        self.query_one("#filter").display = False
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
        if event.name in (*SWITCHES, *METHODS):  # fields come or go
            await self.recompose()
            switch = next(field for field in self.query(OptionField) if field.option == event.name)
            switch.query("AnyOf, OneOf").first().focus()
        self.check_step()
        self.estimate()

    def check_step(self) -> str:
        said = super().check_step()
        for field in self.query(OptionField):
            wrong = self.wizard.draft.problem_of(field.option) or self._unfit(field.option)
            field.show_problem(wrong, self._note(field.option))
        return said

    def _unfit(self, option: str) -> str:
        """What the two models object to in the value, as long as it is the one they were asked about."""
        if self.wizard.draft.standing("method") != "refused":
            return ""
        return next((p.partition(": ")[2] for p in self.unfit if p.startswith(f"{option}: ")), "")

    def _note(self, option: str) -> str:
        """That the chosen value needs a package which is not installed, or what it is known to do."""
        value = self.wizard.draft.get(option)
        extra = needed_by(option, value)
        if extra in self.lacking:
            return f"needs the extra {extra}: {self.lacking[extra]}"
        return warning_of(option, value)

    @work(exclusive=True, group="extras", exit_on_error=False)
    async def ask_for_extras(self) -> None:
        """Of the helper process, whose packages are those of the run."""
        with contextlib.suppress(TmergeError):  # of a helper that does not start, the estimate says it
            self.lacking = await self.wizard.probe.ask("extras")
            self.check_step()

    def action_filter(self) -> None:
        self.query_one("#filter").display = True
        self.query_one("#filter").focus()

    @on(Input.Changed, "#filter")
    def _filtered(self, event: Input.Changed) -> None:
        event.stop()
        words = event.value.lower().split()
        for field in self.query(OptionField):
            told = f"{field.option} {field.option.replace('_', ' ')} {field.meaning} {field.side_note}".lower()
            field.display = all(word in told for word in words)

    @on(Input.Submitted, "#filter")
    def _found(self) -> None:
        first = next((field for field in self.query(OptionField) if field.display), None)
        if first is not None:
            first.query("Input, AnyOf, OneOf").first().focus()

    def action_back(self) -> None:
        """Escape shows all options again first."""
        field = self.query_one("#filter", Input)
        if not field.display:
            super().action_back()
            return
        field.value = ""
        field.display = False
        self.query(OptionField).first().query("Input, AnyOf, OneOf").first().focus()

    async def action_expert(self) -> None:
        self.expert = not self.expert
        await self.recompose()
        self.on_mount()

    @work(exclusive=True, group="defaults")
    async def action_defaults(self) -> None:
        changed = [name for name in self.wizard.draft.values if name in options() and not _elsewhere(name)]
        if not changed:
            self.notify("every setting on this screen is its default")
            return
        answers = [("defaults", "Take them back"), ("stay", "Keep them")]
        text = f"Changed here: {titles(changed)}."
        question = Ask(f"Take back {len(changed)} settings?", text, answers, danger="defaults")
        if await self.app.push_screen_wait(question) == "defaults":
            for name in changed:
                self.wizard.change(name, None)
            self.wizard.goto("method")

    @work(exclusive=True, group="estimate", exit_on_error=False)
    async def estimate(self) -> None:
        """Time, memory and disk, and what does not fit the two models, from the helper process."""
        await asyncio.sleep(QUIET)
        shown = self.query_one("#estimate", Static)
        draft = self.wizard.draft
        try:
            said = await ask_needs(draft, self.wizard.probe)
        except TmergeError as error:
            shown.update(Content.styled(f"no estimate: {error.found.splitlines()[0]}", "$warning"))
            return
        if said is None:
            shown.update(Content.styled("an estimate needs both models", "$text-muted"))
            return
        shown.update(told(said))
        self.unfit = said.get("problems", [])
        draft.checked("method", "; ".join(self.unfit))
        self.check_step()


def _fields(section: str) -> Iterator[str]:
    for name in options():
        if not _elsewhere(name) and (name.startswith(f"{section}.") if section else "." not in name):
            yield name


def warning_of(option: str, value: object) -> str:
    """What a valid value has been seen to do."""
    if option == "fusion.coupling" and value == "plan":
        return COUPLED
    if option == "transport.epsilon":
        with contextlib.suppress(TypeError, ValueError):
            if float(str(value)) < SMALL:
                return f"below {SMALL} plans seldom converge within max_iterations, and are solved more slowly"
    return ""


def _elsewhere(name: str) -> bool:
    return name.partition(".")[0] in ELSEWHERE
