"""Step 2: the text both models read, with a few samples as each of them will see it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import ContentSwitcher, Input, Static

from tmerge_tui.errors import TmergeError
from tmerge_tui.recipe.presets import preset_names, read_preset
from tmerge_tui.tui import catalog
from tmerge_tui.tui import draft as drafts
from tmerge_tui.tui.draft import is_expert, options
from tmerge_tui.tui.screens.page import WizardPage
from tmerge_tui.tui.screens.pick import PickFolder
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.finder import DATA_SETS, Finder
from tmerge_tui.tui.widgets.toggles import OneOf

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
ORIGINS = ("file", "Hub data set", "preset")
ROLES = ("source", "target")
OF_ORIGIN = (
    "path",
    "holdout_path",
    "repo_id",
    "revision",
    "config_name",
    "split",
    "column",
)  # of one text, not another
QUIET = 0.4  # seconds without a change before the preview is read anew
SHOWN = 4  # samples
NOTHING = {  # said where the samples will be
    "file": "Choose a file: .txt (a sample a line), .jsonl, .csv or .parquet.",
    "Hub data set": "Type a few letters to search the Hub, or an id such as org/name.",
    "preset": "Choose a preset: its text, its method, and its models unless you have chosen others.",
}


class DataScreen(WizardPage):
    heading = "Data"
    sub_heading = "text both models read; a part is held out for measuring"
    step = "data"
    tips = (
        "Every sample is shown as each model will read it, through its own chat template, with its own tokens. "
        "An id being typed searches the Hub: down goes into the list, enter takes a data set, escape closes the list."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "browse", "Browse", id="data.browse", tooltip="Open a text file on this machine"),
        Binding("f4", "field", "Next field", id="data.field", tooltip="Read another field (column) of the file"),
        Binding("f3", "expert", "Expert", id="data.expert", tooltip="Show or hide the settings few people change"),
        Binding("down", "into_list", "Into the list", id="data.down", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[str] = []
        self.expert = False

    def body(self) -> ComposeResult:
        draft = self.wizard.draft
        origin = ORIGINS[1] if draft.get("calibration.repo_id") else ORIGINS[0]
        chosen = _preset_of(draft.get("calibration.repo_id"))
        with Horizontal(id="data"):
            with VerticalScroll(id="data-form", can_focus=False):
                yield OneOf(ORIGINS, origin, id="origin")
                yield OneOf(preset_names(), chosen, id="preset")
                for name in options():
                    if name.startswith("calibration.") and (self.expert or not is_expert(name)):
                        yield OptionField(name, draft.get(name))
            with ContentSwitcher(initial="preview-card", id="beside"):
                with VerticalScroll(id="preview-card", classes="card") as card:
                    card.border_title = "As each model reads it"
                    yield Static("", id="preview")
                with Vertical(id="found-card", classes="card") as card:
                    card.border_title = "Data sets on the Hub"
                    yield Finder(DATA_SETS, id="found")
        yield from self.buttons()

    def on_mount(self) -> None:
        self._show_origin(self.query_one("#origin", OneOf).value)
        first = "repo_id" if self.wizard.draft.get("calibration.repo_id") else "path"
        self.fields(first)[0].query_one(Input).focus()
        self.check_step()
        self.preview()

    def fields(self, *names: str) -> list[OptionField]:
        """Those of them that are shown: some are for experts."""
        return [f for f in self.query(OptionField) if f.option.removeprefix("calibration.") in names]

    def _show_origin(self, origin: str) -> None:
        for field in self.fields("path", "holdout_path"):
            field.display = origin == "file"
        for field in self.fields("repo_id", "revision", "config_name", "split"):
            field.display = origin != "file"
        self.query_one("#preset").display = origin == "preset"

    @on(OneOf.Changed, "#origin")
    def _origin(self, event: OneOf.Changed) -> None:
        self._close_list()
        self._show_origin(event.value)
        if event.value == "file":
            self._take("repo_id", None)
        else:
            self._take("path", None)
            self._take("holdout_path", None)
        self._changed()

    @on(OneOf.Changed, "#preset")
    def _preset(self, event: OneOf.Changed) -> None:
        """Its text and its method; its models too, unless others have been chosen."""
        draft, preset = self.wizard.draft, read_preset(event.value)
        before = _preset_of(draft.get("calibration.repo_id"))
        left = ("", None, *(read_preset(before)[role] for role in ROLES)) if before else ("", None)
        roles = [role for role in ROLES if draft.get(f"{role}.model") in left]
        for name in OF_ORIGIN:
            self.wizard.change(f"calibration.{name}", None)
        leaves = list(drafts.leaves(preset))
        for switch in drafts.SWITCHES:
            self.wizard.change(switch, any(name.startswith(f"{switch}.") for name, _ in leaves))
        for name, value in leaves:
            section = name.partition(".")[0]
            if section not in (*ROLES, "output") or section in roles:
                self.wizard.change(name, value)
        for field in self.query(OptionField):
            if field.query(Input):
                field.put(draft.get(field.option))
        said = f"data {preset['calibration']['repo_id']}, alpha {drafts.as_text(preset['fusion']['alpha'])}"
        self.notify(said + (f", and its {' and '.join(roles)}" if roles else ""), title=event.value)
        self._changed()

    def _take(self, name: str, value: Any) -> None:
        self.wizard.change(f"calibration.{name}", value)
        for field in self.fields(name):
            field.put(value)

    def on_option_field_changed(self, event: OptionField.Changed) -> None:
        self.wizard.change(event.name, event.value)
        if event.name == "calibration.repo_id":  # read once it is whole
            self.check_step()
            self._search(event.value)
        else:
            self._changed()

    # data sets on the Hub

    @property
    def finder(self) -> Finder:
        return self.query_one(Finder)

    @property
    def repo_id(self) -> Input:
        return self.fields("repo_id")[0].query_one(Input)

    @property
    def listing(self) -> bool:
        return self.query_one("#beside", ContentSwitcher).current == "found-card"

    def _search(self, query: str) -> None:
        self.query_one("#beside", ContentSwitcher).current = "found-card"
        self.finder.search(query)

    def _close_list(self) -> None:
        self.query_one("#beside", ContentSwitcher).current = "preview-card"
        self.finder.stop()

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        if self.listing and event.input is self.repo_id:
            self._close_list()
            self._changed()

    @on(Input.Blurred)
    @on(Finder.Left)
    def _left(self) -> None:
        """What stands in the input when one goes on is the choice, unless one goes on into the list."""
        if self.listing and self.focused not in (self.repo_id, self.finder):
            self._close_list()
            self._changed()

    @on(Finder.Taken)
    def _found(self, event: Finder.Taken) -> None:
        """What was said about the fields of another data set is forgotten."""
        self.repo_id.focus()
        self._close_list()
        for name in ("revision", "config_name", "split", "column"):
            self._take(name, None)
        self._take("repo_id", event.name)
        self._changed()

    def action_into_list(self) -> None:
        if self.focused is not self.repo_id:
            raise SkipAction()
        if self.listing:
            self.finder.go_in()
        else:
            self._search(self.repo_id.value.strip())

    def action_back(self) -> None:
        """Escape closes the list first and leaves the screen only then."""
        if self.listing:
            self.repo_id.focus()
            self._close_list()
            self._changed()
        else:
            super().action_back()

    def _changed(self) -> None:
        self.check_step()
        self.preview()

    def check_step(self) -> str:
        said = super().check_step()
        problems = self.wizard.draft.problems()
        for field in self.query(OptionField):
            wrong = next((p.partition(": ")[2] for p in problems if p.startswith(f"{field.option}: ")), "")
            field.show_problem(wrong)
        return said

    # what the models will read

    @work(exclusive=True, group="preview", exit_on_error=False)
    async def preview(self) -> None:
        shown = self.query_one("#preview", Static)
        draft = self.wizard.draft
        path, repo = draft.get("calibration.path"), draft.get("calibration.repo_id")
        if not path and not repo:
            shown.update(Content.styled(NOTHING[self.query_one("#origin", OneOf).value], "$foreground 60%"))
            return
        await asyncio.sleep(QUIET)
        wrong = [p for p in draft.problems() if p.startswith("calibration")]
        if wrong:
            shown.update(Content.styled(f"✗ {wrong[0]}", "$error"))
            return
        shown.update(Content.styled("reading …", "$foreground 60%"))
        try:
            models = await self._models()
            said = await self.wizard.probe.ask(
                "preview", calibration=draft.data()["calibration"], seed=draft.get("seed"), count=SHOWN, models=models
            )
        except TmergeError as error:
            hint = f"\n\n→ {error.hint}" if error.hint else ""
            expected = f"\n\nneeded: {error.expected}" if error.expected else ""
            shown.update(Content.assemble((f"✗ {error.found}", "$error"), expected, (hint, "$accent")))
            return
        self.columns = said["columns"]
        shown.update(_preview(said, list(models)))

    async def _models(self) -> dict[str, Any]:
        """The chosen models that can be asked; the others are left out of the preview."""
        models = {}
        for role in ROLES:
            name = str(self.wizard.draft.get(f"{role}.model") or "")
            if not name:
                continue
            with contextlib.suppress(TmergeError):  # the Models screen has said what is wrong with it
                models[role] = catalog.model_args(await asyncio.to_thread(catalog.resolve, name))
        return models

    # keys

    @work
    async def action_browse(self) -> None:
        current = Path(str(self.wizard.draft.get("calibration.path") or ".")).expanduser()
        path = await self.app.push_screen_wait(PickFolder("Open a text file", current.parent, suffixes=SUFFIXES))
        if path is not None:
            self._take("repo_id", None)
            self._take("path", str(path))
            self._changed()

    def action_field(self) -> None:
        """Walks through the fields of the file."""
        if not self.columns:
            self.notify("this file has no fields to choose from")
            return
        current = self.wizard.draft.get("calibration.column")
        position = self.columns.index(current) + 1 if current in self.columns else 0
        self._take("column", self.columns[position % len(self.columns)])
        self._changed()

    async def action_expert(self) -> None:
        self.expert = not self.expert
        await self.recompose()
        self.on_mount()


def _preset_of(repo: str | None) -> str:
    """The preset with this data set; empty when there is none."""
    return next((name for name in preset_names() if read_preset(name)["calibration"]["repo_id"] == repo), "")


def _preview(said: dict[str, Any], roles: list[str]) -> Content:
    parts = [
        Content.assemble(
            (f"{said['calibration']:,}", "bold"),
            (" to align on, ", "$foreground 60%"),
            (f"{said['holdout']:,}", "bold"),
            (" held out", "$foreground 60%"),
            (
                f"   field {said['column']}" + (f" of {', '.join(said['columns'])}" if said["columns"] else ""),
                "$foreground 60%",
            ),
        )
    ]
    parts += [Content.assemble(("! ", "$warning bold"), warning) for warning in said["warnings"]]
    for number, sample in enumerate(said["samples"], 1):
        parts.append(Content.styled(f"\nsample {number}", "$primary bold"))
        texts = [sample[role]["text"] for role in roles]
        if not roles:
            parts.append(Content(sample["plain"]))
        for role in roles:
            seen = sample[role]
            cut = ", cut" if seen["cut"] else ""
            parts.append(
                Content.assemble((f"{role} ", "$accent"), (f"{seen['tokens']:,} tokens{cut}", "$foreground 60%"))
            )
            if role == roles[-1] or len(set(texts)) > 1:
                parts.append(Content(seen["text"]))
    if len(roles) < 2:
        parts.append(Content.styled("\ntoken counts need both models", "$foreground 60%"))
    return Content("\n").join(parts)
