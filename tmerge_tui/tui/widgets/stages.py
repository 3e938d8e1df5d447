"""The stages of a run as a list: mark, name, bar, what is done, rate, elapsed, time left."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

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
PARTS = " ▏▎▍▌▋▊▉█"


class Stages(Widget):
    """One line a stage; a second line for the running one when there is room."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.state: RunState | None = None
        self.now = 0.0

    def show(self, state: RunState, now: float) -> None:
        self.state, self.now = state, now
        self.refresh()

    def render(self) -> Content:
        if self.state is None or not self.state.stages:
            return Content.styled("the worker is starting …", "$foreground 60%")
        lines = [self._line(stage) for stage in self.state.stages.values()]
        return Content("\n").join(lines)

    def _line(self, stage: Stage) -> Content:
        mark, style = MARKS[stage.outcome]
        width = self.size.width
        label = human.shorten(stage.label, 24)
        parts: list[Content | tuple[str, str]] = [(f"{mark} ", style), (f"{label:<24} ", "bold" if mark == "●" else "")]
        right = self._right(stage)
        room = width - 27 - len(right) - 1
        if stage.outcome == "running" and room >= 6:
            parts.append(bar(stage.fraction, min(room, 30)))
            room -= min(room, 30)
        elif stage.outcome == "cached":
            parts.append(("from the earlier run"[: max(room, 0)], "$foreground 60%"))
            room -= min(len("from the earlier run"), max(room, 0))
        parts.append((" " * max(room, 0) + " " + right, "$foreground 60%" if stage.outcome != "running" else ""))
        return Content.assemble(*parts)

    def _right(self, stage: Stage) -> str:
        if stage.outcome == "waiting":
            return ""
        elapsed = human.duration(stage.elapsed(self.now))
        if stage.outcome != "running":
            return f"{elapsed:>8}"
        counts = f"{stage.done:,}/{stage.total:,} {stage.unit}" if stage.total else ""
        if self.size.width < 72:
            return f"{counts} {elapsed:>8}"
        left = human.duration(stage.eta())
        return f"{counts}  {human.rate(stage.rate, stage.unit):>14}  {elapsed:>8}  {left:>7} left"


def bar(fraction: float, width: int) -> Content:
    """A bar of eighths on a visible ground."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (PARTS[rest] if rest else "")
    return Content.assemble((text, "$primary"), ("░" * (width - len(text)), "$foreground 35%"))
