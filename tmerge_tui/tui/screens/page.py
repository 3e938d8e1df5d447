"""What all full screens share: title line, step rail, body, footer, and the notice when the terminal is too small."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.screen import Screen
from textual.widgets import Button, Footer

from tmerge_tui.tui import human
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.draft import STEPS, step_problems
from tmerge_tui.tui.widgets.rail import Rail
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toosmall import TooSmall
from tmerge_tui.tui.widgets.unpacking import Unpacking

ROOMY = 100  # columns from which on the footer has room for the palette's key
SLIM = 80  # columns below which panes stand one above the other


class Page(Screen[None]):
    """A screen with a heading; subclasses give `body()`."""

    heading: ClassVar[str] = ""
    sub_heading: ClassVar[str] = ""
    step: ClassVar[str] = ""  # name in STEPS; no rail when empty
    tips: ClassVar[str] = ""  # what the help screen says about this screen

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", id="page.back", tooltip="The screen before this one; nothing typed is lost"),
    ]

    @property
    def wizard(self) -> TmergeApp:
        assert isinstance(self.app, TmergeApp)
        return self.app

    def compose(self) -> ComposeResult:
        self._fit_size()
        with Horizontal(id="top"):
            yield Static("[b]tmerge[/b]", id="brand", markup=True)
            yield Static(self.heading, id="heading", markup=False)
            yield Static(self.sub_heading, id="sub-heading", markup=False)
            yield Unpacking(id="unpacking")
        with Container(id="frame"):
            if self.step:
                yield Rail(self.step, self.wizard.draft, id="rail")
            with Container(id="body"):
                yield from self.body()
        yield Footer()
        yield TooSmall()

    def _fit_size(self) -> None:
        """The layout of this size from the first painting on: Textual itself takes it from a later resize."""
        size = self.app.size
        for room, steps in (
            (size.width, self.app.HORIZONTAL_BREAKPOINTS), (size.height, self.app.VERTICAL_BREAKPOINTS),
        ):  # fmt: skip
            self.add_class(max((step for step in steps or () if room >= step[0]), default=(0, "-tiny"))[1])
        self.set_class(size.width < SLIM, "-slim")

    def body(self) -> ComposeResult:
        raise NotImplementedError

    def on_resize(self) -> None:
        width = self.app.size.width
        self.set_class(width < SLIM, "-slim")
        for footer in self.query(Footer):
            footer.show_command_palette = width >= ROOMY  # else this screen's own keys need the room

    def action_back(self) -> None:
        self.app.pop_screen()


class WizardPage(Page):
    """A step of the wizard: back and forward through STEPS, blocked while the step has problems."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+n", "next", "Next", id="wizard.next", tooltip="The next step, when this one is complete"),
    ]

    def buttons(self, next_label: str = "Next") -> ComposeResult:
        with Horizontal(id="buttons"):
            yield Static("", id="blocked", markup=False)
            yield Button("Back", id="back", compact=True)
            yield Button(next_label, id="next", variant="primary", compact=True)

    def on_mount(self) -> None:
        self.check_step()

    def check_step(self) -> str:
        """Shows what is missing here and returns it; empty when the next step may be taken."""
        problems = step_problems(self.wizard.draft, self.step)
        said = problems[0] if problems else ""
        more = f"  (+{len(problems) - 1} more)" if len(problems) > 1 else ""
        blocked = self.query_one("#blocked", Static)
        blocked.update(said and f"○ {human.in_words(said)}{more}")
        blocked.set_class(bool(said), "-shown")
        self.query_one("#next", Button).set_class(bool(said), "-blocked")
        self.query_one(Rail).refresh()
        return said

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "back":
            event.stop()
            self.action_back()
        elif event.button.id == "next":
            event.stop()
            self.action_next()

    def action_next(self) -> None:
        said = self.check_step()
        if said:
            self.notify(said, title="Not yet", severity="warning", timeout=4)
            return
        refusal = self.wizard.draft.refusal(self.step)
        if refusal:  # one may go on without the Hub, or mend it later, but not unawares
            title = f"{self.heading}: this will not run yet"
            self.notify(refusal, title=title, severity="warning", timeout=8)
        self.wizard.goto(STEPS[STEPS.index(self.step) + 1])

    def action_back(self) -> None:
        position = STEPS.index(self.step)
        if position:
            self.wizard.goto(STEPS[position - 1])
        else:
            self.app.pop_screen()

    def on_rail_chosen(self, event: Rail.Chosen) -> None:
        if event.step in STEPS[:4] and event.step != self.step:
            self.wizard.goto(event.step)
