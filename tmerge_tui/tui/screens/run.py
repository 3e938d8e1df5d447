"""Step 5: a run as its events tell it. Live, finished or dead, started here or elsewhere: the screen is the same.

The event file is read in a thread ten times a second and folded into a RunState; the widgets are redrawn from that
state at most at the same pace. Closing the screen leaves the run alone.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button

from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.errors import RecipeError, TmergeError
from tmerge_tui.events import TrainingStep
from tmerge_tui.quantities import clock, duration
from tmerge_tui.recipe import load_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui import human
from tmerge_tui.tui.draft import Draft
from tmerge_tui.tui.screens.ask import Ask
from tmerge_tui.tui.screens.page import Page
from tmerge_tui.tui.widgets import scores
from tmerge_tui.tui.widgets.chart import Chart, Series
from tmerge_tui.tui.widgets.ending import Ending
from tmerge_tui.tui.widgets.gauges import Gauges
from tmerge_tui.tui.widgets.logpane import Entry, LogPane
from tmerge_tui.tui.widgets.matrix import Matrix
from tmerge_tui.tui.widgets.rail import Rail
from tmerge_tui.tui.widgets.stages import Stages, bar
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.worker.follow import Ended, Follower, has_report
from tmerge_tui.worker.state import RunState

POLL = 0.1  # seconds between two looks at the event file
MAP_EVERY = 0.25  # seconds between two drawings of a map: the terminal pays for every changed cell
TABS = ("stages", "maps", "log")
LONG = 600.0  # seconds left from which on the time of day of the end is said
WHOLE = (116, 36)  # columns and rows from which on all views stand side by side
ENDED = 44  # rows that they take together with how the run has ended; with fewer the maps go, which the result has
PHASES = {
    "starting": ("○ starting", "$text-muted"),
    "running": ("● running", "$primary bold"),
    "finished": ("✓ finished", "$success bold"),
    "failed": ("✗ failed", "$error bold"),
    "interrupted": ("■ interrupted", "$warning bold"),
    "crashed": ("✗ the worker died", "$error bold"),
}


class RunScreen(Page):
    heading = "Run"
    step = "run"
    tips = (
        "The merge runs in a process of its own: closing this screen or the terminal does not stop it. "
        f"1, 2 and 3 change the view; a terminal of {WHOLE[0]} x {WHOLE[1]} shows everything."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Home", id="run.back", tooltip="Close this screen; the run goes on"),
        Binding("v", "result", "Result", id="run.result", tooltip="Scores, plans and text of the finished merge"),
        Binding(
            "1",
            "tab('stages')",
            "View",
            id="run.stages",
            key_display="1-3",
            tooltip="1 stages, 2 maps and curves, 3 log",
        ),
        Binding("2", "tab('maps')", "Maps", id="run.maps", show=False),
        Binding("3", "tab('log')", "Log", id="run.log", show=False),
        Binding(
            "s", "side", "Side", id="run.side", tooltip="Layer costs of another side; a full turn follows the solver"
        ),
        Binding("c", "cancel", "Cancel", id="run.cancel", tooltip="Stop the merge; finished pieces are kept"),
        Binding("r", "resume", "Resume", id="run.resume", tooltip="Go on where the run stopped"),
        Binding("e", "edit", "Edit", id="run.edit", tooltip="Change what the run was asked to do, and start anew"),
        Binding("enter", "result", "Result", id="run.result.enter", show=False),
    ]

    def __init__(self, path: Path, follower: Follower | None = None) -> None:
        super().__init__()
        self.path = path
        self.run = RunDir(path)
        self.follower = follower or Follower(self.run)
        self.state = RunState()
        self.side = ""  # the side whose costs are shown; "" follows the solver
        self._drawn = 0.0
        self._phase = ""
        self._seen: tuple[object, ...] = ()
        self._step: TrainingStep | None = None  # that is drawn

    def body(self) -> ComposeResult:
        yield Static("", id="overall")
        yield Ending(id="ending")
        with Horizontal(id="run-top", classes="-in-stages"):
            with Vertical(classes="card", id="stages-card") as card:
                card.border_title = "Stages"
                yield Stages(id="stages")
            with Vertical(classes="card", id="gauges-card") as card:
                card.border_title = "Worker"
                yield Gauges(id="gauges")
        with Horizontal(id="run-maps", classes="-in-maps"):
            with Vertical(classes="card") as card:
                card.border_title = "Layer costs"
                yield Matrix(waiting="no layer pair solved yet", id="costs")
            with Vertical(classes="card") as card:
                card.border_title = "Transport plan"
                yield Matrix(waiting="no plan yet", id="heat")
        with Horizontal(id="run-bottom", classes="-in-maps -in-log"):
            with Vertical(classes="card -in-maps", id="convergence-card") as card:
                card.border_title = "Sinkhorn"
                yield Chart("", "iteration", log=True, waiting="no solve yet", id="convergence")
            with Vertical(classes="card -in-maps", id="training-card") as card:
                card.border_title = "Training"
                yield Chart("", "step", waiting="no step yet", id="training")
                validation = Chart("", "step", waiting="no pass yet", id="validation")
                validation.display = False  # until a pass is measured
                yield validation
            with Vertical(classes="card -in-log", id="log-card") as card:
                card.border_title = "Log"
                yield LogPane(id="log")

    def on_mount(self) -> None:
        self.query_one("#sub-heading", Static).update(human.shorten(str(self.path), 60))
        self.add_class("-tab-stages")
        self.watch_run()

    def on_unmount(self) -> None:
        if self.wizard.attached == self.path:
            self.wizard.attached = None

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        """One view at a time where they have no room side by side."""
        tabs = self.size.width < WHOLE[0] or self.size.height < WHOLE[1]
        self.set_class(tabs, "-tabs")
        self.set_class(self.follower.ended is not None and self.size.height < ENDED, "-squeezed")
        self.refresh_bindings()

    # following

    @work(exclusive=True, group="follow")
    async def watch_run(self) -> None:
        """Reads in a thread, folds and draws here, until the run has ended."""
        self.wizard.attached = self.path
        live = False
        while True:
            lines = await asyncio.to_thread(self.follower.poll)
            for line in lines:
                self.state.apply(line)
            if lines and not self.follower.caught_up() and time.monotonic() - self._drawn < POLL:
                continue  # a long log of an earlier hour: draw once in a while, read on
            self.draw()
            if self.follower.ended is not None:
                break
            live = True
            await asyncio.sleep(POLL)
        if self.wizard.attached == self.path:
            self.wizard.attached = None
        self._drawn = 0.0
        self.draw()
        if live:  # it has ended while someone waited: perhaps in another window
            self.app.bell()

    @property
    def phase(self) -> str:
        ended = self.follower.ended
        return "crashed" if ended is not None and ended.error is not None else self.state.phase

    def draw(self) -> None:
        """Brings the widgets up to the state."""
        if not self.query("#overall"):  # the screen is being taken down
            return
        state, now = self.state, time.time()
        self.query_one("#overall", Static).update(self._overall(now), layout=False)
        self.query_one(Stages).show(
            state, now if self.follower.ended is None else state.last, dead=self.phase == "crashed"
        )
        if state.resources is not None:
            self.query_one(Gauges).show(state.resources, state.peak_rss, state.peak_gpu)
        self.query_one(LogPane).show(self._log())
        if time.monotonic() - self._drawn >= MAP_EVERY:
            self._drawn = time.monotonic()
            self._draw_maps()
            self._draw_training()
        if self.follower.ended is not None:
            self._draw_end(self.follower.ended)
        if self.phase != self._phase:
            self._phase = self.phase
            self.refresh_bindings()

    def _overall(self, now: float) -> Content:
        text, style = PHASES[self.phase]
        state = self.state
        left = state.eta(now) if self.phase == "running" else None
        parts: list[Content | tuple[str, str] | str] = [(f"{text}  ", style), bar(state.fraction, 24)]
        parts.append(f" {state.fraction:4.0%}   ")
        if self.follower.ended is not None:
            parts += [("after ", "$text-muted"), duration(state.elapsed(state.last))]
        else:
            parts += [("elapsed ", "$text-muted"), clock(state.elapsed(now))]
        if left is not None:
            parts += [("   left about ", "$text-muted"), clock(left)]
            if left > LONG:
                parts.append((time.strftime(", until %H:%M", time.localtime(now + left)), "$text-muted"))
        if state.start is not None and state.start.device != "auto" and self.size.width > 90:
            parts.append((f"   {state.start.device}", "$text-muted"))
        if state.warnings:
            count = len(state.warnings)
            parts.append((f"   ! {count} warning{'s' if count > 1 else ''}", "$warning"))
        return Content.assemble(*parts)

    def _draw_maps(self) -> None:
        state = self.state
        side = self.side or (state.heat.side if state.heat is not None else next(reversed(state.costs), ""))
        seen = (side, state.pairs, state.heat, state.convergence)
        if seen == self._seen or not side:
            return
        self._seen = seen
        self.query_one("#costs", Matrix).show(
            state.cost_matrix(side), f"{side}  {state.pairs:,} pairs solved" + self._unconverged()
        )
        if state.heat is not None:
            heat = state.heat
            caption = f"{heat.side}  target {heat.l} ← source {heat.m}"
            self.query_one("#heat", Matrix).show_cells(heat.rows, heat.cols, heat.cells(), heat.lo, heat.hi, caption)
        if state.convergence is not None:
            curve = state.convergence
            points = tuple((float(i), v) for i, v in enumerate(curve.violations, 1))
            last = f"{curve.violations[-1]:.1e}" if curve.violations and curve.violations[-1] is not None else "?"
            caption = f"{curve.side} {curve.l}←{curve.m}: {last} after {len(curve.violations)} iterations"
            self.query_one("#convergence", Chart).show([Series("", points)], caption)

    def _draw_training(self) -> None:
        """The loss, in place of the solver's convergence once there is one."""
        step = self.state.training
        self.set_class(step is not None, "-training")
        if step is None or step is self._step:
            return
        self._step = step
        loss = "not finite" if step.loss is None else f"{step.loss:.4f}"
        caption = (
            f"{beside_trained(step.method)}, seed {step.seed}: loss {loss} at step {step.step:,} of {step.steps:,}"
        )
        curves = [points for (method, _), points in self.state.trainings.items() if method == step.method]
        told = [points for (method, _), points in self.state.validations.items() if method == step.method]
        drawn = bool(told) and self.size.height >= WHOLE[1]  # else there is no room for two
        self.query_one("#validation").display = drawn
        if told:
            last, lowest = told[-1][-1][1], min(value for _, value in told[-1])
            said = f"validation {last:.4f} bits per byte, lowest {lowest:.4f}"
            self.query_one("#validation", Chart).show(scores.losses(told), said)
            caption += "" if drawn else f", validation {last:.4f}"
        self.query_one("#training", Chart).show(scores.losses(curves), caption)

    def _log(self) -> list[Entry]:
        """What the run has said, and how its worker died when it could not say so itself."""
        ended = self.follower.ended
        if ended is None or ended.error is None:
            return list(self.state.log)
        return [*self.state.log, (self.state.last, "error", ended.error.found.splitlines()[0])]

    def _unconverged(self) -> str:
        return f", {self.state.unconverged:,} not converged" if self.state.unconverged else ""

    def _draw_end(self, ended: Ended) -> None:
        ending = self.query_one(Ending)
        first = not ending.has_class("-shown")
        ending.show(ended, self.state, self.phase == "finished", self.has_result)
        if first:
            self._fit()

    # keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that do nothing now are shown dimmed; those that a finished run has no use for are not."""
        ended = self.follower.ended
        if action in ("cancel", "resume") and self.phase == "finished":
            return False
        if action == "cancel":
            return True if ended is None else None
        if action == "resume":
            return True if ended is not None else None
        if action == "edit":
            return ended is not None
        if action == "result":
            return self.has_result
        if action == "tab":
            return self.has_class("-tabs")
        return True

    def action_tab(self, name: str) -> None:
        for tab in TABS:
            self.set_class(tab == name, f"-tab-{tab}")

    def action_side(self) -> None:
        sides = ["", *self.state.costs]
        self.side = sides[(sides.index(self.side) + 1) % len(sides)] if self.side in sides else ""
        self._seen = ()
        self._draw_maps()

    @work
    async def action_cancel(self) -> None:
        text = "It stops at once. Finished pieces are kept: resume goes on from there."
        answers = [("cancel", "Cancel the merge"), ("stay", "Let it run")]
        if await self.app.push_screen_wait(Ask("Cancel the merge?", text, answers)) == "cancel":
            self.wizard.cancel_run(self.path)

    @on(Button.Pressed, "#to-resume")
    @work(exclusive=True, group="start")
    async def action_resume(self) -> None:
        if self.follower.ended is None or self.phase == "finished":
            return
        follower = Follower(self.run, from_start=False)
        try:
            if not await self.wizard.may_run(load_recipe(self.run.recipe)):
                return
            follower.worker = await self.wizard.start_worker(self.path)
        except TmergeError as error:
            self.notify(str(error), title="Cannot resume", severity="error")
            return
        self.follower, self.state, self._seen, self._step = follower, RunState(), (), None
        self.query_one(Ending).hide()
        self._fit()
        self.watch_run()

    @on(Button.Pressed, "#to-edit")
    def action_edit(self) -> None:
        """The run's recipe as the wizard's draft."""
        try:
            self.wizard.draft = Draft.from_recipe(load_recipe(self.run.recipe))
        except RecipeError as error:
            self.notify(str(error), title="Cannot be changed", severity="error")
            return
        self.wizard.goto("method")

    @property
    def has_result(self) -> bool:
        """Whether there is a report: of this run, or of an earlier one in the same folder."""
        return self.phase == "finished" or (self.follower.ended is not None and has_report(self.run))

    @on(Button.Pressed, "#to-result")
    def action_result(self) -> None:
        if self.has_result:
            self.wizard.show_result(self.path)

    def on_rail_chosen(self, event: Rail.Chosen) -> None:
        if event.step == "result":
            self.action_result()

    def action_back(self) -> None:
        self.wizard.go_home()
