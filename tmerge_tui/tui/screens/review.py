"""Step 4: the whole recipe before anything starts; save it, copy the command, start."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.highlight import highlight
from textual.widgets import Button, Input

from tmerge_tui.errors import RecipeError, TmergeError
from tmerge_tui.files import write_atomic
from tmerge_tui.recipe import dump_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui import draft as drafts
from tmerge_tui.tui.draft import ROLES, Draft, suggest_output
from tmerge_tui.tui.needs import ask_needs, told
from tmerge_tui.tui.screens.ask import Ask
from tmerge_tui.tui.screens.method import warning_of
from tmerge_tui.tui.screens.page import WizardPage
from tmerge_tui.tui.widgets.card import last_part
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.rail import Rail
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.worker import follow

RECIPE_NAME = "recipe.yaml"
ELSE = {
    "evaluation.general": "general text",
    "evaluation.attribution": "where gains come from",
    "evaluation.safety": "what is declined",
}


def summary(draft: Draft) -> Content:
    """The recipe in words: who learns from whom, on what, how, and what is measured."""
    source, target = (last_part(str(draft.get(f"{role}.model") or "?")) for role in ROLES)
    text = str(draft.get("calibration.path") or draft.get("calibration.repo_id") or "?")
    measured = ["bits per byte", *(["placebos"] if draft.get("evaluation.controls") else [])]
    measured += [str(task) for task in drafts.parse("evaluation.tasks", draft.get("evaluation.tasks")) or ()]
    measured += [word for section, word in ELSE.items() if draft.get(section)]
    then = " then trained;" if draft.get("adaptation") else ""
    return Content.assemble(
        (source, "bold"), (" into ", "$text-muted"), (target, "bold"),
        (f"   {draft.get('calibration.samples')} samples of ", "$text-muted"), last_part(text),
        ("   alpha ", "$text-muted"), drafts.as_text(draft.get("fusion.alpha")),
        (f", {draft.get('fusion.coupling')};{then} measured: {', '.join(measured)}", "$text-muted"),
    )  # fmt: skip


def _known(draft: Draft) -> list[str]:
    """What the chosen values have been seen to do."""
    options = ("fusion.coupling", "transport.epsilon")
    return [said for name in options if (said := warning_of(name, draft.get(name)))]


class ReviewScreen(WizardPage):
    heading = "Review"
    sub_heading = "nothing has started yet"
    step = "review"
    tips = "The recipe is all a run depends on. Saved, it runs without this window: tmerge --batch recipe.yaml"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+n", "next", "Start", id="review.start", tooltip="Start the merge in a process of its own"),
        Binding("ctrl+s", "save", "Save", id="review.save", tooltip="Write the recipe to a file"),
        Binding("f8", "mend", "Mend", id="review.mend", tooltip="Go to the step of the first problem"),
        Binding("f7", "copy", "Copy", id="review.copy", tooltip="Copy the tmerge --batch command"),
    ]

    def body(self) -> ComposeResult:
        draft = self.wizard.draft
        if not draft.get("output"):
            self.wizard.change("output", suggest_output(draft))
        yield OptionField("output", draft.get("output"))
        yield Static("", id="summary")
        with VerticalScroll(id="yaml-card", classes="card") as card:
            card.border_title = "Recipe"
            yield Static("", id="yaml")
        yield Static("", id="checked")
        with Horizontal(id="save-row"):
            yield Static("save as", classes="field-name")
            yield Input(RECIPE_NAME, id="recipe-path", compact=True)
            yield Button("Save", id="save", compact=True)
            yield Button("Copy command", id="copy", compact=True)
        yield from self.buttons("Start the merge")

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []  # what the helper process found with the models at hand

    def on_mount(self) -> None:
        if not self.check_step():
            self.try_out()
            self.estimate()
        self.query_one("#next", Button).focus()

    @work(exclusive=True, group="check", exit_on_error=False)
    async def try_out(self) -> None:
        """Everything that would stop the run in its first seconds, found before it starts; and what it takes."""
        shown = self.query_one("#checked", Static)
        draft = self.wizard.draft
        if not await self.wizard.may_run(draft.recipe()):
            shown.update(Content.styled("! not checked: the models' own code was not allowed to run", "$warning"))
            return
        shown.update(Content.styled("○ checking models, text, memory and room …", "$text-muted"))
        try:
            said = await self.wizard.probe.ask("check", recipe=draft.data())
        except TmergeError as error:
            shown.update(Content.styled(f"! not checked: {error.found}", "$warning"))
            return
        self.refused = said["problems"]
        warnings = [*said["warnings"], *_known(draft)]
        lines = [Content.styled(f"✗ {problem}", "$error") for problem in self.refused]
        if not self.refused:
            text = "✓ models, text, memory and room are checked: it can run"
            lines.append(Content.styled(text, "$success"))
            for step in ("models", "data", "method"):
                draft.checked(step)
        draft.checked("review", self.refused[0] if self.refused else "")
        self.refresh_bindings()
        self.query_one(Rail).refresh()
        shown.update(Content("\n").join([*lines, *(Content.assemble(("! ", "$warning bold"), w) for w in warnings)]))

    @work(exclusive=True, group="needs", exit_on_error=False)
    async def estimate(self) -> None:
        """The time above all: this is where one presses Start."""
        self.query_one("#summary", Static).update(summary(self.wizard.draft))
        try:
            said = await ask_needs(self.wizard.draft, self.wizard.probe)
        except TmergeError as error:
            taken = Content.styled(f"no estimate: {error.found.splitlines()[0]}", "$warning")
        else:
            taken = told(said) if said is not None else Content("")
        whole = Content("\n").join([summary(self.wizard.draft), taken])
        self.query_one("#summary", Static).update(whole)

    def on_option_field_changed(self, event: OptionField.Changed) -> None:
        self.wizard.change(event.name, event.value)
        self.refused = []
        if not self.check_step():
            self.try_out()

    def check_step(self) -> str:
        """All problems of the recipe count here, whichever screen they belong to."""
        shown = self.query_one("#yaml", Static)
        super().check_step()
        try:
            text = dump_recipe(self.wizard.draft.recipe())
        except RecipeError as error:
            said = "\n".join(f"✗ {problem}" for problem in error.problems)
            shown.update(f"This recipe cannot run yet:\n\n{said}\n\nf8 goes to the step it belongs to.")
            self.query_one("#next", Button).add_class("-blocked")
            return error.problems[0]
        shown.update(highlight(text.rstrip(), language="yaml"))
        self.query_one("#next", Button).remove_class("-blocked")
        return ""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return bool(self._problem()) if action == "mend" else True

    def _problem(self) -> str:
        return next(iter([*self.wizard.draft.problems(), *self.refused]), "")

    def action_mend(self) -> None:
        """The step that the first problem belongs to."""
        section = self._problem().partition(":")[0].partition(".")[0].strip()
        step = {"source": "models", "target": "models", "calibration": "data"}.get(section, "method")
        if section == "output":
            self.query(OptionField).first().query_one(Input).focus()
        else:
            self.wizard.goto(step)

    # keeping it

    @on(Button.Pressed, "#save")
    @on(Input.Submitted, "#recipe-path")
    def action_save(self) -> None:
        path = Path(self.query_one("#recipe-path", Input).value.strip() or RECIPE_NAME).expanduser()
        self._save(path)

    @work
    async def _save(self, path: Path) -> None:
        try:
            text = self.wizard.draft.yaml()
        except RecipeError as error:
            self.notify(error.problems[0], title="Not saved", severity="error")
            return
        if path.exists():
            answers = [("replace", "Replace it"), ("stay", "Keep it")]
            if (
                await self.app.push_screen_wait(Ask(f"{path} exists", "Replace the file?", answers, "replace"))
                != "replace"
            ):
                return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text.encode())
        except OSError as error:
            self.notify(f"{path}: {error.strerror}", title="Not saved", severity="error")
            return
        self.notify(f"saved {path}")

    @on(Button.Pressed, "#copy")
    def action_copy(self) -> None:
        path = self.query_one("#recipe-path", Input).value.strip() or RECIPE_NAME
        command = f"tmerge --batch {shlex.quote(path)}"
        self.app.copy_to_clipboard(command)
        known = "" if Path(path).expanduser().exists() else "  (save the recipe first)"
        self.notify(f"{command}{known}", title="Copied")

    # starting

    def action_next(self) -> None:
        said = self.check_step() or next(iter(self.refused), "")
        if said:
            self.notify(said, title="Not yet", severity="warning", timeout=4)
        else:
            self._start()

    @work(exclusive=True, group="start")
    async def _start(self) -> None:
        """A folder for the run, the recipe in it, a worker, and the screen that follows it."""
        recipe = self.wizard.draft.recipe()
        try:
            if not await self.wizard.may_run(recipe):
                return
            run = RunDir.create(recipe.output)
            if follow.state_of(run) != "new":
                text = "Pieces that are still right are used again; the recipe there is replaced by this one."
                answers = [("go", "Continue in that folder"), ("stay", "Choose another")]
                if await self.app.push_screen_wait(Ask(f"{run.path} holds an earlier run", text, answers, "")) != "go":
                    return
            write_atomic(run.recipe, dump_recipe(recipe).encode())
            await self.wizard.launch(run.path)
        except TmergeError as error:
            self.notify(str(error), title="Cannot start", severity="error", timeout=10)
            return
        except OSError as error:
            self.notify(str(error), title="Cannot start", severity="error", timeout=10)
            return
        self.wizard.forget_draft()
