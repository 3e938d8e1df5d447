"""Where everything starts: a new merge, the demo, the runs of before, and what this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import DataTable, OptionList, Static
from textual.widgets.option_list import Option

from tmerge_tui.errors import RecipeError, TmergeError
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui import human, storage, this_machine
from tmerge_tui.tui.draft import demo_draft
from tmerge_tui.tui.screens.ask import Ask
from tmerge_tui.tui.screens.page import Page
from tmerge_tui.worker import follow

REFRESH = 2.0  # seconds between two looks at the runs
MARKS = {
    "running": ("●", "$primary"),
    "finished": ("✓", "$success"),
    "failed": ("✗", "$error"),
    "crashed": ("✗", "$error"),
    "interrupted": ("■", "$warning"),
    "new": ("○", "$foreground 60%"),
}


class Home(Page):
    heading = "Transport and merge"
    tips = "Runs go on without this window. A run that failed or was interrupted resumes where it stopped."

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", show=False),
        Binding("n", "new", "New merge", id="home.new", tooltip="Choose two models and merge them"),
        Binding("d", "demo", "Demo", id="home.demo", tooltip="Merge two small models that come with tmerge"),
        Binding("o", "open", "Open run", id="home.open", tooltip="Show a run folder that is not in the list"),
        Binding(
            "r", "resume", "Resume", id="home.resume", tooltip="Go on with the selected run; finished pieces are kept"
        ),
        Binding(
            "delete,x",
            "delete",
            "Delete",
            id="home.delete",
            key_display="x",
            tooltip="Delete the selected run's folder",
        ),
    ]

    def body(self) -> ComposeResult:
        with Horizontal(id="home-top"):
            with Vertical(classes="card", id="start-card") as card:
                card.border_title = "Start"
                yield OptionList(id="start", compact=True)
            with Vertical(classes="card", id="machine-card") as card:
                card.border_title = "This machine"
                yield Static("looking …", id="machine")
        with Vertical(classes="card", id="runs-card") as card:
            card.border_title = "Recent runs"
            yield DataTable(id="runs", cursor_type="row", zebra_stripes=False)
            yield Static("Nothing here yet. A merge you start is listed here, running or not.", id="no-runs")

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for name, width in (("State", 13), ("Merge", 30), ("When", 12), ("Folder", None)):
            table.add_column(name, width=width, key=name)
        self._fill_start()
        self.query_one("#start").focus()
        self.look()
        self.look_at_runs()
        self.set_interval(REFRESH, self.look_at_runs)

    def on_screen_resume(self) -> None:
        self._fill_start()
        self.look_at_runs()

    def _fill_start(self) -> None:
        start = self.query_one("#start", OptionList)
        highlighted = start.highlighted or 0
        start.clear_options()
        draft = self.wizard.draft
        rows = [("new", "New merge", "choose two models")]
        if draft:
            names = " → ".join(
                human.shorten(Path(str(draft.get(f"{role}.model") or "?")).name, 20) for role in ("source", "target")
            )
            rows.insert(0, ("continue", "Continue", names))
        rows.append(("demo", "Run the demo", "two small models"))
        rows.append(("open", "Open a run", "any run folder"))
        for name, title, about in rows:
            start.add_option(Option(Content.assemble((f"{title:<14}", "bold"), (about, "$foreground 60%")), id=name))
        start.highlighted = min(highlighted, len(rows) - 1)

    @work(thread=True, exclusive=True, group="machine", exit_on_error=False)
    def look(self) -> None:
        rows = this_machine.facts(Path.cwd())
        lines = [Content.assemble((f"{name:<10}", "$foreground 60%"), value) for name, value in rows]
        self.app.call_from_thread(self.query_one("#machine", Static).update, Content("\n").join(lines))

    @work(thread=True, exclusive=True, group="runs", exit_on_error=False)
    def look_at_runs(self) -> None:
        runs = [(run, follow.state_of(RunDir(run["path"]))) for run in storage.recent_runs()]
        self.app.call_from_thread(self._show_runs, runs)

    def _show_runs(self, runs: list[tuple[dict, str]]) -> None:
        if not self.is_mounted:
            return
        table = self.query_one(DataTable)
        self.query_one("#no-runs").display = not runs
        table.display = bool(runs)
        keep = self._selected()
        table.clear()
        for run, state in runs:
            mark, style = MARKS[state]
            shown = Content.from_markup(f"[{style}]{mark}[/] {state}")
            merge = " → ".join(human.shorten(Path(run.get(role, "?")).name, 13) for role in ("source", "target"))
            folder = human.shorten(run["path"], max(self.app.size.width - 68, 16))
            table.add_row(shown, merge, human.ago(run.get("started", 0)), folder, key=run["path"])
        if keep is not None and keep in table.rows:
            table.move_cursor(row=table.get_row_index(keep))

    def _selected(self) -> str | None:
        table = self.query_one(DataTable)
        if not table.row_count:
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return str(key)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        {"new": self.action_new, "continue": self._continue, "demo": self.action_demo, "open": self.action_open}[
            str(event.option.id)
        ]()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self._show(Path(str(event.row_key.value)))

    def _show(self, path: Path) -> None:
        if follow.state_of(RunDir(path)) == "finished":
            self.wizard.show_result(path)
        else:
            self.wizard.show_run(path)

    def _continue(self) -> None:
        self.wizard.goto(self.wizard.draft.step if self.wizard.draft.step != "run" else "review")

    @work
    async def action_new(self) -> None:
        if self.wizard.draft:
            answers = [("fresh", "Start afresh"), ("keep", "Continue it"), ("stay", "Stay")]
            text = "What you chose for it is lost when you start afresh."
            answer = await self.app.push_screen_wait(Ask("There is a half-filled merge", text, answers, danger="fresh"))
            if answer == "keep":
                self._continue()
            if answer != "fresh":
                return
            self.wizard.forget_draft()
        self.wizard.goto("models")

    def action_demo(self) -> None:
        """The bundled recipe as a draft: one look at it, then start."""
        try:
            draft = demo_draft()
        except (OSError, RecipeError) as error:
            self.notify(f"this copy of tmerge has no demo: {error}", title="No demo", severity="warning")
            return
        self.wizard.draft = draft
        self.wizard.goto("review")

    @work
    async def action_open(self) -> None:
        from tmerge_tui.tui.screens.pick import PickFolder

        path = await self.app.push_screen_wait(PickFolder("Open a run folder", Path.cwd(), folders=True))
        if path is None:
            return
        try:
            RunDir.open(path)
        except TmergeError as error:
            self.notify(str(error), title="Not a run", severity="error")
            return
        self.wizard.remember(path)
        self._show(path)

    @work(exclusive=True, group="start")
    async def action_resume(self) -> None:
        selected = self._selected()
        if selected is None:
            return
        run = RunDir(selected)
        state = follow.state_of(run)
        if state not in ("running", "finished"):
            try:
                await self.wizard.launch(run.path)
            except TmergeError as error:
                self.notify(str(error), title="Cannot resume", severity="error")
            return
        self._show(run.path)

    @work
    async def action_delete(self) -> None:
        selected = self._selected()
        if selected is None:
            return
        if follow.state_of(RunDir(selected)) == "running":
            self.notify("it is running: cancel it first", title="Not deleted", severity="warning")
            return
        text = f"{selected}\nwith its merged model, report and finished pieces. This cannot be undone."
        answers = [("delete", "Delete the folder"), ("forget", "Only take it off the list"), ("stay", "Keep it")]
        answer = await self.app.push_screen_wait(Ask("Delete this run?", text, answers, danger="delete"))
        if answer in ("delete", "forget"):
            self._remove(selected, answer == "delete")

    @work(thread=True, exit_on_error=False, group="delete")
    def _remove(self, path: str, folder_too: bool) -> None:
        import shutil

        try:
            if folder_too:
                RunDir.open(path)  # nothing but a run is ever deleted
                shutil.rmtree(path)
            storage.forget_run(path)
        except (OSError, TmergeError) as error:
            self.app.call_from_thread(self.notify, str(error), title="Not deleted", severity="error")
        self.app.call_from_thread(self.look_at_runs)

    def action_back(self) -> None:
        """Home is the first screen: escape does nothing here."""
