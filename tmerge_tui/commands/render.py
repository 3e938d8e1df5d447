"""A run on a terminal: live bars, or one line at a time where there is no terminal. Events in, text on stderr out."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tmerge_tui.events import Line, Logged, Metric, RunStarted, StageFinished, StageProgressed, StageStarted, Warned
from tmerge_tui.quantities import clock, duration, progress, rate
from tmerge_tui.visible import visible
from tmerge_tui.worker.state import RunState, Stage, measured

EVERY = 5.0  # seconds between two progress lines of one stage where there is no terminal
REFRESH = 0.1  # seconds between two paintings of the bars
MARKS = {
    "waiting": ("·", "dim"), "running": ("▸", "cyan"), "done": ("✓", "green"), "cached": ("✓", "green"),
    "skipped": ("–", "dim"), "failed": ("✗", "red"), "interrupted": ("■", "yellow"),
}  # fmt: skip


class Renderer(Protocol):
    state: RunState

    def show(self, line: Line) -> None: ...
    def tick(self) -> None: ...
    def close(self) -> None: ...


def renderer(console: Console, quiet: bool) -> Renderer:
    if quiet:
        return Silent()
    return Bars(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class Silent:
    """Only keeps the state."""

    def __init__(self) -> None:
        self.state = RunState()

    def show(self, line: Line) -> None:
        self.state.apply(line)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """A line when a stage starts and ends, and every few seconds in between."""

    def __init__(self, console: Console) -> None:
        self.state = RunState()
        self.console = console
        self._spoke = 0.0

    def show(self, line: Line) -> None:
        self.state.apply(line)
        event = line.event
        if isinstance(event, StageStarted):
            self._spoke = line.t
            self._say(line, f"{event.label}: {event.total:,} {event.unit}" if event.total else event.label)
        elif isinstance(event, StageProgressed) and event.done < event.total and line.t - self._spoke >= EVERY:
            self._spoke = line.t
            stage = self.state.stages[event.stage]
            self._say(line, f"  {amount(stage)}  {pace(stage)}  eta {clock(stage.eta())}  {event.note}".rstrip())
        elif isinstance(event, StageFinished):
            stage = self.state.stages[event.stage]
            self._say(line, f"{stage.label}: {ending(stage)}")
        elif (text := remark(line)) is not None:
            self._say(line, text)

    def _say(self, line: Line, text: str) -> None:
        since = self.state.elapsed(line.t)
        share = f"{100 * self.state.fraction:3.0f} %"
        self.console.print(words(f"[{clock(since):>7} {share}] {text}"), soft_wrap=True)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class Bars:
    """One bar a stage with rate, elapsed time and time left, and one for the whole run."""

    def __init__(self, console: Console) -> None:
        self.state = RunState()
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()
        self._painted = 0.0

    def show(self, line: Line) -> None:
        self.state.apply(line)
        if (text := remark(line)) is not None:
            style = "yellow" if isinstance(line.event, Warned) else ""
            self.console.print(words(text, style))

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._painted >= REFRESH:
            self._painted = now
            self._paint()

    def close(self) -> None:
        self._paint()
        self._live.stop()

    def _paint(self) -> None:
        self._live.update(screen(self.state, time.time(), self.console.width), refresh=True)


def screen(state: RunState, now: float, width: int = 80) -> RenderableType:
    """The table of bars; what a narrow terminal has no room for is left out."""
    if state.phase == "starting":
        return Text("starting the engine …", "dim")
    table = Table.grid(padding=(0, 1))
    for column in range(7):
        table.add_column(no_wrap=True, justify="right" if column > 2 else "left", overflow="ellipsis")
    for stage in state.stages.values():
        mark, style = MARKS[stage.outcome]
        label = words(stage.label, "" if stage.started is not None else "dim")
        row = [amount(stage), pace(stage) if width >= 100 else "", elapsed(stage, now), left(stage)]
        table.add_row(Text(mark, style), label, _bar(stage.fraction, width), *map(words, row))
    eta = state.eta(now)
    row = [f"{100 * state.fraction:.0f} %", "", clock(state.elapsed(now)), f"eta {clock(eta)}" if eta else ""]
    table.add_row(Text(""), Text("whole run", "bold"), _bar(state.fraction, width), *map(Text, row))
    return table


def words(text: str, style: str = "") -> Text:
    """No markup, and nothing that a terminal would obey."""
    return Text(visible(text), style)


def _bar(fraction: float, width: int) -> RenderableType:
    return ProgressBar(total=1.0, completed=fraction, width=24 if width >= 100 else 12) if width >= 76 else Text("")


def remark(line: Line) -> str | None:
    """What is printed above the bars as it comes: warnings, notes, measured numbers."""
    event = line.event
    if isinstance(event, Warned):
        return f"warning: {event.where}: {event.message}"
    if isinstance(event, Logged) and event.level != "debug":
        return event.message
    if isinstance(event, RunStarted):
        return f"{'continuing' if event.resumed else 'run'} {event.run} on {event.device}"
    if isinstance(event, Metric) and event.value is not None:
        return measured(event)
    return None


def amount(stage: Stage) -> str:
    if stage.outcome == "waiting" or stage.total <= 0:
        return ""
    return progress(stage.done, stage.total, stage.unit)


def pace(stage: Stage) -> str:
    return rate(stage.rate, stage.unit) if stage.rate > 0 else ""


def elapsed(stage: Stage, now: float) -> str:
    """A running clock, then how long it took."""
    if stage.started is None:
        return ""
    return clock(stage.elapsed(now)) if stage.outcome == "running" else duration(stage.elapsed(now))


def left(stage: Stage) -> str:
    eta = stage.eta()
    if eta is not None:
        return f"eta {clock(eta)}"
    return stage.outcome if stage.outcome not in ("running", "waiting", "done") else ""


def ending(stage: Stage) -> str:
    if stage.outcome == "cached":
        return "ready from an earlier run"
    if stage.outcome == "skipped":
        return "skipped"
    return f"done in {duration(stage.seconds)}"
