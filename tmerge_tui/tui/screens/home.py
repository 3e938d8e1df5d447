"""Where everything starts: a new merge, the demo, the runs of before, and what this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import DataTable, Input, OptionList
from textual.widgets.option_list import Option

from tmerge_tui.errors import RecipeError, TmergeError
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui import human, this_machine
from tmerge_tui.tui.draft import ROLES, demo_draft
from tmerge_tui.tui.screens.ask import Ask
from tmerge_tui.tui.screens.page import Page
from tmerge_tui.tui.widgets.runs_table import SORTS, RunsTable
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.worker import follow, run_index
from tmerge_tui.worker.summary import Summary

NOTHING = "Nothing here yet. Every merge made on this machine is listed here, by the wizard or the command line."
REFRESH = 2.0  # seconds between two looks at the runs


class Home(Page):
    heading = "Transport and merge"
    tips = "Runs go on without this window. A run that failed or was interrupted resumes where it stopped."

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", show=False),
        Binding("n", "new", "New merge", id="home.new", tooltip="Choose two models and merge them"),
        Binding("p", "preset", "Preset", id="home.preset", tooltip="Start from one of the paper's tasks"),
        Binding(
            "d", "demo", "Demo", id="home.demo", show=False, tooltip="Merge two small models that come with tmerge"
        ),
        Binding(
            "o", "open", "Open run", id="home.open", show=False, tooltip="Show a run folder that is not in the list"
        ),
        Binding("slash", "filter", "Filter", id="home.filter", key_display="/", tooltip="Only runs with these words"),
        Binding("s", "sort", "Sort", id="home.sort", tooltip="By time, result, name or state, in turn"),
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
            card.border_title = "Runs of this machine"
            yield Input(placeholder="words of a model, a folder, a state or a verdict", id="filter", compact=True)
            yield RunsTable()
            yield Static("", id="no-runs", markup=False)
            yield Static("", id="said", markup=False)

    def on_mount(self) -> None:
        self.said = ""  # of the run under the cursor
        self.picked = ""  # the run that another is to be compared with
        self.query_one("#filter").display = False
        self.query_one(RunsTable).display = False
        self._fill_start()
        self.query_one("#start").focus()
        self.look()
        self.look_at_runs()
        self._timer = self.set_interval(REFRESH, self.look_at_runs)

    def on_screen_suspend(self) -> None:
        self._timer.pause()  # what lies below another screen is not painted

    def on_screen_resume(self) -> None:
        if not hasattr(self, "_timer"):
            return  # it is being mounted
        self._fill_start()
        self.look_at_runs()
        self._timer.resume()

    def on_resize(self) -> None:
        self.query_one(RunsTable).draw()

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
        rows.append(("preset", "From a preset", "the paper's tasks"))
        rows.append(("demo", "Run the demo", "two small models"))
        rows.append(("open", "Open a run", "any run folder"))
        for name, title, about in rows:
            start.add_option(Option(Content.assemble((f"{title:<14}", "bold"), (about, "$text-muted")), id=name))
        start.highlighted = min(highlighted, len(rows) - 1)

    @work(thread=True, exclusive=True, group="machine", exit_on_error=False)
    def look(self) -> None:
        rows = this_machine.facts(Path.cwd())
        lines = [Content.assemble((f"{name:<10}", "$text-muted"), value) for name, value in rows]
        self.app.call_from_thread(self.query_one("#machine", Static).update, Content("\n").join(lines))

    @work(thread=True, exclusive=True, group="runs", exit_on_error=False)
    def look_at_runs(self) -> None:
        from tmerge_tui.worker.summary import summaries

        self.app.call_from_thread(self._show_runs, summaries())

    def _show_runs(self, runs: list[Summary]) -> None:
        if not self.is_mounted:
            return
        table = self.query_one(RunsTable)
        table.show(runs)
        self._say_what_is_listed()

    def _say_what_is_listed(self) -> None:
        table, card, nothing = (
            self.query_one(RunsTable),
            self.query_one("#runs-card"),
            self.query_one("#no-runs", Static),
        )
        shown = bool(table.row_count)
        if table.has_focus and not shown:
            self.query_one("#start").focus()
        table.display, nothing.display = shown, not shown
        self._say_of_the_run()
        if not shown:
            found = "no run has these words: escape shows all" if table.query_text else NOTHING
            nothing.update(found)
        count = f"{table.row_count} of {len(table.runs)}" if table.query_text else str(len(table.runs))
        title = "Runs of this machine" + (f" · {count}, {table.order} first" if table.runs else "")
        if card.border_title != title:
            card.border_title = title

    def _selected(self) -> str | None:
        return self.query_one(RunsTable).selected

    def action_filter(self) -> None:
        if not self.query_one(RunsTable).runs:
            self.notify("there are no runs to filter yet")
            return
        self.query_one("#filter").display = True
        self.query_one("#filter").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        table = self.query_one(RunsTable)
        table.query_text = event.value
        table.draw()
        self._say_what_is_listed()

    def on_input_submitted(self) -> None:
        table = self.query_one(RunsTable)
        if table.row_count:
            table.focus()

    def action_sort(self) -> None:
        table = self.query_one(RunsTable)
        orders = list(SORTS)
        table.order = orders[(orders.index(table.order) + 1) % len(orders)]
        table.draw()
        self._say_what_is_listed()

    async def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        name = str(event.option.id)
        if name == "continue":
            self._continue()
        else:
            await self.run_action(name)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """What came of the run under the cursor, where a tall screen has room for it."""
        self._say_of_the_run()

    def _say_of_the_run(self) -> None:
        text = self.query_one(RunsTable).said
        if text != self.said:  # an idle screen paints nothing
            self.said = text
            self.query_one("#said", Static).update(text)
            self.query_one("#said").set_class(bool(text), "-shown")

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self._show(Path(str(event.row_key.value)))

    def _show(self, path: Path) -> None:
        if follow.state_of(RunDir(path)) == "finished":
            self.wizard.show_result(path)
        else:
            self.wizard.show_run(path)

    def _continue(self) -> None:
        self.wizard.goto(self.wizard.draft.step if self.wizard.draft.step != "run" else "review")

    async def _may_replace(self) -> bool:
        """Whether a half-filled merge, if there is one, may be lost; opens it when that is the answer."""
        if not self.wizard.draft:
            return True
        answers = [("fresh", "Start afresh"), ("keep", "Continue it"), ("stay", "Stay")]
        text = "What you chose for it is lost when you start afresh."
        answer = await self.app.push_screen_wait(Ask("There is a half-filled merge", text, answers, danger="fresh"))
        if answer == "keep":
            self._continue()
        return answer == "fresh"

    @work(exclusive=True, group="start")
    async def action_new(self) -> None:
        if await self._may_replace():
            self.wizard.forget_draft()
            self.wizard.goto("models")

    @work(exclusive=True, group="start")
    async def action_demo(self) -> None:
        """The bundled recipe as a draft: one look at it, then start."""
        try:
            draft = demo_draft()
        except (OSError, RecipeError) as error:
            self.notify(f"this copy of tmerge has no demo: {error}", title="No demo", severity="warning")
            return
        if await self._may_replace():
            self.wizard.draft = draft
            self.wizard.goto("review")

    @work(exclusive=True, group="start")
    async def action_preset(self) -> None:
        from tmerge_tui.tui.screens.presets import PresetsScreen

        name = await self.app.push_screen_wait(PresetsScreen())
        if name is not None and await self._may_replace():
            self.wizard.forget_draft()
            self.wizard.draft.take_preset(name, ROLES)
            self.wizard.save_draft()
            self.wizard.goto("models")

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
        if state not in ("running", "finished") or follow.later_attempt(run):
            from tmerge_tui.recipe import load_recipe

            try:
                if await self.wizard.may_run(load_recipe(run.recipe)):
                    await self.wizard.launch(run.path)
            except TmergeError as error:
                self.notify(str(error), title="Cannot resume", severity="error")
            return
        self._show(run.path)

    def action_compare(self) -> None:
        """The first press picks a run, the second, on another, opens both."""
        from tmerge_tui.tui.screens.compare import CompareScreen

        selected = self._selected()
        if selected is None:
            return
        if self.picked in ("", selected):
            self.picked = selected
            self.notify(f"with {Path(selected).name}: c on another run opens both", title="Compare")
            return
        first, self.picked = self.picked, ""
        self.app.push_screen(CompareScreen(Path(first), Path(selected)))

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
            run_index.forget(Path(path))
        except (OSError, TmergeError) as error:
            self.app.call_from_thread(self.notify, str(error), title="Not deleted", severity="error")
        self.app.call_from_thread(self.look_at_runs)

    def action_back(self) -> None:
        """Home is the first screen: escape shows all runs again, and no more."""
        field = self.query_one("#filter", Input)
        if field.display:
            field.value = ""
            field.display = False
            self.query_one("#start").focus()
