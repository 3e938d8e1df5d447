"""Step 6: what came of it. The verdict, and a pane for each part that the report has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Button, TabbedContent, TabPane, Tabs

from tmerge_tui import bundle
from tmerge_tui.errors import RecipeError
from tmerge_tui.recipe import load_recipe
from tmerge_tui.recipe.yamlfile import read_scalar
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui import human
from tmerge_tui.tui.draft import SWITCHES, Draft
from tmerge_tui.tui.helper import Probe
from tmerge_tui.tui.panes.benchmarks import BenchmarksPane
from tmerge_tui.tui.panes.files import FilesPane
from tmerge_tui.tui.panes.layers import LayersPane
from tmerge_tui.tui.panes.more import MorePane
from tmerge_tui.tui.panes.plans import PlansPane
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.panes.scores import ScoresPane
from tmerge_tui.tui.panes.strength import StrengthPane
from tmerge_tui.tui.panes.text import TextPane
from tmerge_tui.tui.panes.training import TrainingPane
from tmerge_tui.tui.screens.page import Page
from tmerge_tui.tui.screens.push import PushScreen
from tmerge_tui.tui.widgets.rail import Rail
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.worker.follow import later_attempt
from tmerge_tui.worker.spawn import command, environment


@dataclass(frozen=True)
class Pane:
    """`needs` are the parts of report.json that it draws: without any of them the pane is not there. All titles fit 80
    columns."""

    name: str
    title: str
    needs: tuple[str, ...]
    make: Callable[[Report, Probe], Widget]


PANES = (
    Pane("scores", "Scores", (), lambda report, probe: ScoresPane(report)),
    Pane("training", "Train", ("adaptation",), lambda report, probe: TrainingPane(report)),
    Pane("benchmarks", "Tasks", ("benchmarks",), lambda report, probe: BenchmarksPane(report)),
    Pane("strength", "Alpha", ("strength",), lambda report, probe: StrengthPane(report)),
    Pane("layers", "Layer", ("layer_plans",), lambda report, probe: LayersPane(report)),
    Pane("plans", "Plan", ("layer_costs",), PlansPane),
    Pane("text", "Text", (), TextPane),
    Pane("files", "Files", (), lambda report, probe: FilesPane(report, push_refused())),
    Pane("more", "More", ("general", "safety", "attribution"), lambda report, probe: MorePane(report)),
)


class ResultScreen(Page):
    heading = "Result"
    step = "result"
    tips = (
        "Every difference is to the target alone, on text neither model was aligned on; lower bits per byte is better."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Home", id="result.back"),
        Binding("1", "pane(0)", "View", id="result.view", key_display=f"1-{len(PANES)}"),
        *(Binding(str(i + 1), f"pane({i})", f"View {i + 1}", show=False) for i in range(1, len(PANES))),
        Binding("o", "report", "Report", id="result.report", tooltip="Open report.html in a browser"),
        Binding(
            "p", "push", "Push", id="result.push", show=False, tooltip="Upload the merged model to the Hub; asks first"
        ),
        Binding("e", "edit", "Edit", id="result.edit", tooltip="Change what was asked for, and merge again"),
        Binding("l", "run", "Run", id="result.run", tooltip="The run's stages and log"),
    ]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.report = Report(path, {})
        self.panes: list[Pane] = []  # that this report has

    @property
    def results(self) -> Mapping[str, Any]:
        return self.report.results

    def body(self) -> ComposeResult:
        yield Static("reading the report …", id="headline")
        yield Static("", id="later", markup=False)
        yield Vertical(id="panes-room")

    def on_mount(self) -> None:
        self.query_one("#sub-heading", Static).update(human.shorten(str(self.path), 60))
        self.load()

    @work(exclusive=True, group="load", exit_on_error=False)
    async def load(self) -> None:
        try:
            text = await asyncio.to_thread((self.path / "report.json").read_text, encoding="utf-8")
            self.report = Report(self.path, json.loads(text))
            await self._show()
        except (OSError, ValueError, KeyError) as error:
            said = f"{self.path / 'report.json'}: {error}"
            self.query_one("#headline", Static).update(
                Content.assemble(("✗ the report cannot be read\n", "$error bold"), said, "\n→ ", "run the merge again")
            )

    async def _show(self) -> None:
        verdict = self.results["verdict"]
        good = verdict.get("helped") is True and verdict.get("beats_placebos")
        mark, style = ("✓", "$success") if good else ("○", "$warning")
        self.query_one("#headline", Static).update(Content.styled(f"{mark} {verdict['headline']}", f"{style} bold"))
        later = await asyncio.to_thread(later_attempt, RunDir(self.path))
        self.query_one("#later", Static).update(later and f"! {later}; l shows it")
        self.query_one("#later", Static).display = bool(later)
        self.panes = [pane for pane in PANES if not pane.needs or any(map(self.report.part, pane.needs))]
        tabs = TabbedContent(id="panes")
        await self.query_one("#panes-room").mount(tabs)
        for place, pane in enumerate(self.panes, 1):
            shown = pane.make(self.report, self.wizard.probe)
            await tabs.add_pane(TabPane(f"{place} {pane.title}", shown, id=pane.name))
        if self.focused is None:
            tabs.query_one(Tabs).focus()

    def action_pane(self, place: int) -> None:
        if place < len(self.panes):
            tabs = self.query_one(TabbedContent)
            tabs.query_one(Tabs).focus()  # what had it before is out of sight
            tabs.active = self.panes[place].name

    @property
    def model_folder(self) -> Path:
        return self.report.model_folder

    # what to do next

    def on_scores_pane_chosen(self, event: ScoresPane.Chosen) -> None:
        self._edit(event.step["set"])

    def action_edit(self) -> None:
        self._edit([])

    def _edit(self, changes: list[str]) -> None:
        """The run's recipe as the wizard's draft, with `section.key=value` changes made to it."""
        try:
            draft = Draft.from_recipe(load_recipe(RunDir(self.path).recipe))
        except RecipeError as error:
            self.notify(str(error), title="Cannot be changed", severity="error")
            return
        for change in changes:
            name, _, value = change.partition("=")
            for switch in SWITCHES:
                if name.startswith(f"{switch}."):
                    draft.set(switch, True)
            draft.set(name, read_scalar(value))
        self.wizard.draft = draft
        self.wizard.goto("method")

    # files

    @on(Button.Pressed, "#copy-path")
    def _copy(self) -> None:
        self.app.copy_to_clipboard(str(self.model_folder))
        self.notify(str(self.model_folder), title="Copied")

    @on(Button.Pressed, "#open-report")
    @work(thread=True, exit_on_error=False, group="browser")
    def action_report(self) -> None:
        """Over SSH there is no browser to open: the path is shown either way."""
        report = self.path / "report.html"
        opened = bundle.open_in_browser(report.as_uri())
        said = str(report) if opened else f"{report}\nno browser here: copy the file to where there is one"
        self.app.call_from_thread(self.notify, said, title="Report")

    @on(Button.Pressed, "#push")
    @work
    async def action_push(self) -> None:
        reason = push_refused()
        if reason:
            self.notify(reason, title="Cannot push", severity="warning")
            return
        models = self.results.get("models") or {}
        told = (f"{role} {(models.get(role) or {}).get('licence') or 'not stated'}" for role in ("source", "target"))
        answer = await self.app.push_screen_wait(PushScreen(str(self.model_folder), f"licences: {', '.join(told)}"))
        if answer is not None:
            self.notify(f"uploading to {answer[0]}", title="Push")
            self._upload(*answer)

    @work(exit_on_error=False, group="push")
    async def _upload(self, repo: str, private: bool) -> None:
        """The same `tmerge push` that a script would run: it needs the engine, which this process never imports."""
        arguments = ["push", str(self.path), "--repo", repo, "--model", self.model_folder.name, "--yes"]
        process = await asyncio.create_subprocess_exec(
            *command(),
            *arguments,
            *([] if private else ["--public"]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        out, err = await process.communicate()
        if process.returncode == 0:
            self.notify(out.decode().strip(), title="Pushed", timeout=15)
        else:
            said = err.decode(errors="replace").strip() or f"exit code {process.returncode}"
            self.notify(said, title="Not pushed", severity="error", timeout=15)

    def on_rail_chosen(self, event: Rail.Chosen) -> None:
        if event.step == "run":
            self.action_run()

    def action_run(self) -> None:
        self.wizard.show_run(self.path)

    def action_back(self) -> None:
        self.wizard.go_home()


def push_refused() -> str:
    """Why a push is not possible; empty when it is."""
    from tmerge_tui.tui import catalog

    if catalog.login() == "not logged in":
        return "not logged in: run `hf auth login` first"
    return ""
