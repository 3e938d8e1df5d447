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
from textual.widgets import ContentSwitcher, Input

from tmerge_tui.errors import TmergeError
from tmerge_tui.quantities import size
from tmerge_tui.recipe.presets import preset_names, read_preset
from tmerge_tui.tui import catalog, human
from tmerge_tui.tui import draft as drafts
from tmerge_tui.tui.draft import ROLES, is_expert, options
from tmerge_tui.tui.screens.page import WizardPage
from tmerge_tui.tui.screens.pick import PickFolder
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.finder import DATA_SETS, Finder, type_into
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toggles import OneOf

SUFFIXES = (
    ".txt", ".text", ".md", ".markdown", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow",
    ".gz", ".bz2", ".xz", ".zst", ".zstd",
)  # fmt: skip
ORIGINS = ("file", "Hub data set", "preset")
PASTED = ("calibration.path", "calibration.holdout_path", "calibration.repo_id")
BASIC = ("calibration.holdout_path",)  # of the expert options: "measure it again on fresh text" is what reports advise
HINTS = {"calibration.column": "or question+answer"}
QUIET = 0.4  # seconds without a change before the preview is read anew
SHOWN = 4  # samples
NOTHING = {  # said where the samples will be
    "file": "Choose a file: .txt (a sample a line), .md, .json, .jsonl, .csv, .parquet; or a folder of them.",
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
        Binding("f4", "field", "Column", id="data.field", tooltip="Read another field (column) of the file"),
        Binding("f5", "expert", "Expert", id="data.expert", tooltip="Show or hide the settings few people change"),
        Binding("down", "into_list", "Into the list", id="data.down", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[str] = []
        self.kept_path: str | None = None
        self.expert = False

    def body(self) -> ComposeResult:
        draft = self.wizard.draft
        origin = ORIGINS[1] if draft.get("calibration.repo_id") else ORIGINS[0]
        chosen = draft.preset
        if chosen:
            origin = ORIGINS[2]
        with Horizontal(id="data"):
            with VerticalScroll(id="data-form", can_focus=False):
                yield OneOf(ORIGINS, origin, id="origin")
                yield OneOf(preset_names(), chosen, id="preset")
                for name in options():
                    if name.startswith("calibration.") and (self.expert or name in BASIC or not is_expert(name)):
                        yield OptionField(name, draft.get(name), HINTS.get(name, ""))
                yield Static("", id="meaning")
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
        self.watch(self, "focused", self._say_meaning, init=False)

    def _say_meaning(self) -> None:
        """Below a narrow form there is one place for what the field means that has the focus: nothing moves."""
        field = next((f for f in self.query(OptionField) if f.has_focus_within), None)
        self.query_one("#meaning", Static).update(Content("") if field is None else field.below())

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
        if event.value != "preset" and self.wizard.draft.preset:
            self._leave_preset()
        if event.value == "file":
            self._take("repo_id", None)
            self._take("path", self.kept_path)  # what was chosen before one looked elsewhere
        else:
            self.kept_path = self.wizard.draft.get("calibration.path") or self.kept_path
            self._take("path", None)
            self._take("holdout_path", None)
        self._changed()

    @on(OneOf.Changed, "#preset")
    def _preset(self, event: OneOf.Changed) -> None:
        """Its text and its method; its models too, unless others have been chosen."""
        draft = self.wizard.draft
        before = draft.preset
        left = ("", None, *(read_preset(before)[role] for role in ROLES)) if before else ("", None)
        roles = tuple(role for role in ROLES if draft.get(f"{role}.model") in left)
        changed = draft.take_preset(event.value, roles)
        self.wizard.changed()
        self._fill()
        self.notify(f"sets {drafts.titles(changed)}; back to file takes it back", title=event.value, timeout=8)
        self._changed()

    def _leave_preset(self) -> None:
        name = self.wizard.draft.preset
        back = self.wizard.draft.leave_preset()
        self.wizard.changed()
        self._fill()
        if back:
            self.notify(f"taken back: {drafts.titles(back)}", title=f"{name} left", timeout=8)

    def _fill(self) -> None:
        for field in self.query(OptionField):
            if field.query(Input):
                field.put(self.wizard.draft.get(field.option))

    def _take(self, name: str, value: Any) -> None:
        self.wizard.change(f"calibration.{name}", value)
        for field in self.fields(name):
            field.put(value)

    def on_option_field_changed(self, event: OptionField.Changed) -> None:
        value = event.value
        if event.name in PASTED:  # a page of the Hub, a path in quotes
            value = catalog.tidy(value)
        self.wizard.change(event.name, value)
        if event.name == "calibration.repo_id":  # read once it is whole
            self.check_step()
            self._search(value)
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

    @on(Finder.Typed)
    def _typed_in_the_list(self, event: Finder.Typed) -> None:
        type_into(self.repo_id, event.character)

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
        self._say_meaning()
        return said

    # what the models will read

    @work(exclusive=True, group="preview", exit_on_error=False)
    async def preview(self) -> None:
        shown = self.query_one("#preview", Static)
        draft = self.wizard.draft
        path, repo = draft.get("calibration.path"), draft.get("calibration.repo_id")
        if not path and not repo:
            shown.update(Content.styled(NOTHING[self.query_one("#origin", OneOf).value], "$text-muted"))
            return
        await asyncio.sleep(QUIET)
        wrong = [p for p in draft.problems() if p.startswith("calibration")]
        if wrong:
            shown.update(Content.styled(f"✗ {human.in_words(wrong[0])}", "$error"))
            return
        shown.update(Content.styled(f"reading {_weight(path)}…", "$text-muted"))
        try:
            models = await self._models()
            said = await self.wizard.probe.ask(
                "preview", calibration=draft.data()["calibration"], seed=draft.get("seed"), count=SHOWN, models=models
            )
        except TmergeError as error:
            hint = f"\n\n→ {human.in_words(error.hint)}" if error.hint else ""
            expected = f"\n\nneeded: {error.expected}" if error.expected else ""
            refusal = Content.assemble((f"✗ {human.in_words(error.found)}", "$error"), expected, (hint, "$accent"))
            shown.update(refusal)
            draft.checked("data", error.found)
            self.check_step()
            await self._find_columns(path)
            if self.columns:
                fields = f"its fields: {', '.join(self.columns)}   f4 takes one"
                shown.update(Content("\n\n").join([refusal, Content(fields)]))
            return
        self.columns = said["columns"]
        draft.checked("data")
        self.check_step()
        shown.update(_preview(said, list(models)))

    async def _find_columns(self, path: str | None) -> None:
        """Of a file that cannot be read as it stands: the field to read may be all that is missing."""
        self.columns = []
        if path:
            with contextlib.suppress(TmergeError):  # what is wrong with the file is on the screen
                self.columns = await self.wizard.probe.ask("fields", path=str(path))

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
        question = PickFolder("Open a text file, or a folder of them", current.parent, suffixes=SUFFIXES, either=True)
        path = await self.app.push_screen_wait(question)
        if path is not None:
            if self.wizard.draft.preset:
                self._leave_preset()
            self._take("repo_id", None)
            self._take("path", str(path))
            origin = self.query_one("#origin", OneOf)
            origin.put(ORIGINS[0])
            self._show_origin(ORIGINS[0])
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


def _weight(path: str | None) -> str:
    """The size of a file that takes a while: `300 MB `."""
    try:
        large = path is not None and Path(path).expanduser().stat().st_size
    except OSError:
        return ""
    return f"{size(large)} " if large and large > 10_000_000 else ""


def _preview(said: dict[str, Any], roles: list[str]) -> Content:
    parts = [
        Content.assemble(
            (f"{said['calibration']:,}", "bold"),
            (" to align on, ", "$text-muted"),
            (f"{said['holdout']:,}", "bold"),
            (" held out", "$text-muted"),
            (
                f"   field {said['column']}" + (f" of {', '.join(said['columns'])}" if said["columns"] else ""),
                "$text-muted",
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
            parts.append(Content.assemble((f"{role} ", "$accent"), (f"{seen['tokens']:,} tokens{cut}", "$text-muted")))
            if role == roles[-1] or len(set(texts)) > 1:
                parts.append(Content(seen["text"]))
    if len(roles) < 2:
        parts.append(Content.styled("\ntoken counts need both models", "$text-muted"))
    return Content("\n").join(parts)
