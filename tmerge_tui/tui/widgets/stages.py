"""The stages of a run as a list: mark, name, bar, what is done, rate, elapsed, time left."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from tmerge_tui.quantities import duration, rate
from tmerge_tui.tui import human
from tmerge_tui.worker.state import RunState, Stage

MARKS = {
    "waiting": ("○", "$foreground 60%"),
    "running": ("●", "$primary"),
    "done": ("✓", "$success"),
    "cached": ("✓", "$success"),
    "skipped": ("–", "$foreground 60%"),
    "failed": ("✗", "$error"),
    "interrupted": ("■", "$warning"),
}
LABEL = 32  # columns of a stage's name
PARTS = " ▏▎▍▌▋▊▉█"


class Stages(Widget):
    """One line a stage; a second line for the running one when there is room."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.state: RunState | None = None
        self.now = 0.0
        self.dead = False  # the worker is gone: what was running is not any more

    def show(self, state: RunState, now: float, dead: bool = False) -> None:
        self.state, self.now, self.dead = state, now, dead
        self.refresh()

    def render(self) -> Content:
        if self.state is None or not self.state.stages:
            return Content.styled("the worker is starting …", "$foreground 60%")
        lines = [self._line(stage) for stage in self.state.stages.values()]
        return Content("\n").join(lines)

    def _line(self, stage: Stage) -> Content:
        outcome = "failed" if self.dead and stage.outcome == "running" else stage.outcome
        mark, style = MARKS[outcome]
        width = min(LABEL, max(self.size.width - (33 if outcome == "running" else 13), 12))
        label = human.shorten(stage.label, width)
        parts: list[Content | tuple[str, str]] = [
            (f"{mark} ", style),
            (f"{label:<{width}} ", "bold" if outcome == "running" else ""),
        ]
        right = self._right(stage, outcome)
        room = max(self.size.width - width - 4 - len(right), 0)
        if outcome == "running" and room >= 6:
            parts.append(bar(stage.fraction, min(room, 30)))
            room -= min(room, 30)
        elif outcome == "cached":
            parts.append(("from the earlier run"[:room], "$foreground 60%"))
            room -= min(len("from the earlier run"), room)
        parts.append((" " * room + " " + right, "" if outcome == "running" else "$foreground 60%"))
        return Content.assemble(*parts)

    def _right(self, stage: Stage, outcome: str) -> str:
        if outcome == "waiting":
            return ""
        elapsed = duration(stage.elapsed(self.now))
        if outcome != "running":
            return f"{elapsed:>8}"
        counts = f"{stage.done:,}/{stage.total:,} {stage.unit}" if stage.total else ""
        left = f"{duration(stage.eta()):>6} left"
        if self.size.width < 84:
            return f"{counts}  {left}"
        return f"{counts}  {rate(stage.rate, stage.unit):>13}  {elapsed:>7}  {left}"


def bar(fraction: float, width: int) -> Content:
    """A bar of eighths on a visible ground."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (PARTS[rest] if rest else "")
    return Content.assemble((text, "$primary"), ("░" * (width - len(text)), "$foreground 35%"))
