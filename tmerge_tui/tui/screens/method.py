"""Step 3: where to start from, and every hyperparameter of the recipe, checked while typing; what the run needs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Input

from tmerge_tui.errors import TmergeError
from tmerge_tui.extras import needed_by
from tmerge_tui.quantities import duration
from tmerge_tui.tui.draft import SWITCHES, titles
from tmerge_tui.tui.needs import ask_needs, source_of_time, told
from tmerge_tui.tui.screens.ask import Ask
from tmerge_tui.tui.screens.page import WizardPage
from tmerge_tui.tui.starting import differing, start_of, take_start, with_start
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.form import Form, changed
from tmerge_tui.tui.widgets.starts import Starts
from tmerge_tui.tui.widgets.static import Static

METHODS = ("method", "compare_methods")  # their sections come and go with them
SMALL = 0.025  # epsilon below which plans are solved in the log domain
COUPLED = (
    "plan, the paper's rule, moves about 1e-5 of the norm: such a merge only shrinks rows, and has not beaten its "
    "placebos; barycentric carries weights at their own scale"
)
METHODS = ("method", "compare_methods")  # their sections come and go with them
QUIET = 0.5  # seconds without a change before the estimate is made anew


class MethodScreen(WizardPage):
    heading = "Method"
    sub_heading = "where to start from, then every option; defaults are the paper's"
    step = "method"
    tips = (
        "On the cards arrows look and enter takes one: it sets training, select and coupling, and nothing else. "
        "Arrows choose on a line of options, space takes one of several. An empty field takes its default."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5", "expert", "Expert", id="method.expert", tooltip="Show or hide the settings few people change"),
        Binding("ctrl+f", "filter", "Find", id="method.filter", tooltip="Only options with these words; escape: all"),
        Binding("f6", "defaults", "Defaults", id="method.defaults", tooltip="Take back every change here; asks first"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.unfit: list[str] = []  # problems with the two models at hand
        self.advice: dict[str, str] = {}  # option -> what it comes to with them
        self.timed: dict[str, object] | None = None  # the settings, but for those of starts, that their times are of
        self.lacking: dict[str, str] = {}  # extras that are not installed: what to do

    def body(self) -> ComposeResult:
        yield Input(placeholder="words of an option or of what it does", id="filter", compact=True)
        with VerticalScroll(id="fields", can_focus=False):
            yield Starts(start_of(self.wizard.draft))
            yield Form(self.wizard.draft)
        yield Static("", id="estimate")
        yield from self.buttons()

    def on_mount(self) -> None:
        self.query_one("#filter").display = False
        self.query_one(Starts).focus()
        self.check_step()
        self.estimate()
        self.ask_for_extras()

    async def on_option_field_changed(self, event: OptionField.Changed) -> None:
        self.wizard.change(event.name, event.value)
        if event.name in (*SWITCHES, *METHODS):  # fields come or go
            await self._compose_form()
            switch = next(field for field in self.query(OptionField) if field.option == event.name)
            switch.query("AnyOf, OneOf").first().focus()
        self.check_step()
        self.estimate()

    async def _compose_form(self) -> None:
        await self.query_one(Form).recompose()
        self.query_one("#filter", Input).value = ""

    def check_step(self) -> str:
        said = super().check_step()
        self.query_one(Starts).chosen = start_of(self.wizard.draft)
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
        return warning_of(option, value) or self.advice.get(option, "")

    @work(exclusive=True, group="extras", exit_on_error=False)
    async def ask_for_extras(self) -> None:
        """Of the helper process, whose packages are those of the run."""
        with contextlib.suppress(TmergeError):  # of a helper that does not start, the estimate says it
            self.lacking = await self.wizard.probe.ask("extras")
            self.check_step()

    # where to start from

    @on(Starts.Taken)
    @work(exclusive=True, group="start")
    async def _taken(self, event: Starts.Taken) -> None:
        """Asks only where a person's own settings would go."""
        draft = self.wizard.draft
        if event.name == start_of(draft):
            return
        if not start_of(draft):
            lost = [name for name in differing(draft, event.name) if name in draft.values and name not in SWITCHES]
            answers = [("take", "Replace them"), ("stay", "Keep mine")]
            question = Ask("Replace your settings?", f"Set anew: {titles(lost)}.", answers, danger="take")
            if lost and await self.app.push_screen_wait(question) != "take":
                return
        take_start(draft, event.name)
        self.wizard.changed()
        await self._compose_form()
        self.check_step()
        self.estimate()

    async def _time_starts(self) -> None:
        """Each card with the time that it takes, all else being as it is now; asked anew when that has changed."""
        from tmerge_tui.recipe.starts import OWNED, STARTS

        rest = {n: v for n, v in self.wizard.draft.values.items() if n not in (*OWNED, *SWITCHES)}
        if rest == self.timed:
            return
        times, source = {}, ""
        for start in STARTS:
            try:
                said = await ask_needs(with_start(self.wizard.draft, start.name), self.wizard.probe)
            except TmergeError:  # the estimate of the draft itself says what is wrong
                continue
            if said is not None:
                times[start.name] = f"{'at most' if said.get('bound') else 'about'} {duration(said['seconds'])}"
                source = source_of_time(said)
        self.query_one(Starts).show_times(times, source)
        self.timed = rest

    # finding and taking back

    def action_filter(self) -> None:
        self.query_one("#filter").display = True
        self.query_one("#filter").focus()

    @on(Input.Changed, "#filter")
    def _filtered(self, event: Input.Changed) -> None:
        event.stop()
        words = event.value.lower().split()
        self.query_one(Starts).display = not words
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
        self.query_one(Starts).focus()

    async def action_expert(self) -> None:
        """The place in the form stays where it was, as long as it is still there."""
        form = self.query_one(Form)
        here = next((field.option for field in self.query(OptionField) if field.has_focus_within), "")
        form.expert = not form.expert
        await self._compose_form()
        self.check_step()
        again = next((field for field in self.query(OptionField) if field.option == here), None)
        (self.query_one(Starts) if again is None else again.query("Input, AnyOf, OneOf").first()).focus()

    @work(exclusive=True, group="defaults")
    async def action_defaults(self) -> None:
        names = changed(self.wizard.draft)
        if not names:
            self.notify("every setting on this screen is its default")
            return
        answers = [("defaults", "Take them back"), ("stay", "Keep them")]
        text = f"Changed here: {titles(names)}."
        question = Ask(f"Take back {len(names)} settings?", text, answers, danger="defaults")
        if await self.app.push_screen_wait(question) == "defaults":
            for name in names:
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
        self.unfit, self.advice = said.get("problems", []), said.get("advice", {})
        draft.checked("method", "; ".join(self.unfit))
        self.check_step()
        await self._time_starts()


def warning_of(option: str, value: object) -> str:
    """What a valid value has been seen to do."""
    if option == "fusion.coupling" and value == "plan":
        return COUPLED
    if option == "transport.epsilon":
        with contextlib.suppress(TypeError, ValueError):
            if float(str(value)) < SMALL:
                return f"below {SMALL} plans seldom converge within max_iterations, and are solved more slowly"
    return ""
