"""The stages of a run as a list: mark, name, bar, what is done, rate, elapsed, time left."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from tmerge_tui.quantities import clock, duration, progress, rate
from tmerge_tui.tui import human
from tmerge_tui.worker.state import RunState, Stage

MARKS = {
    "waiting": ("○", "$text-muted"),
    "running": ("●", "$primary"),
    "done": ("✓", "$success"),
    "cached": ("✓", "$success"),
    "skipped": ("–", "$text-muted"),
    "failed": ("✗", "$error"),
    "interrupted": ("■", "$warning"),
}
REMARKS = {"cached": "from the earlier run", "skipped": "skipped"}
BAR = (6, 30)  # columns: a shorter one says nothing, a longer one no more
PARTS = " ▏▎▍▌▋▊▉█"


class Stages(Widget):
    """One line a stage, two for a running one whose figures have no room beside its name.

    When they are more than the lines here, those that are done share one line, and so do the last to come.
    """

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
            return Content.styled("the worker is starting …", "$text-muted")
        stages = list(self.state.stages.values())
        drawn = [self._lines(stage) for stage in stages]
        room = self.size.height
        done = next((i for i, stage in enumerate(stages) if not stage.ended), len(stages))
        over = sum(map(len, drawn)) - room
        if over > 0 and done > 1:
            folded = min(over + 1, done)
            seconds = sum(stage.seconds or 0.0 for stage in stages[:folded])
            drawn[:folded] = [[self._row("done", f"{folded} stages done", duration(seconds))]]
        lines = [line for each in drawn for line in each]
        if len(lines) > room > 1:
            rest = len(lines) - room + 1
            lines[-rest:] = [self._row("waiting", f"{rest} more", "")]
        return Content("\n").join(lines)

    def _lines(self, stage: Stage) -> list[Content]:
        outcome = "failed" if self.dead and stage.outcome == "running" else stage.outcome
        if outcome == "waiting":
            return [self._row(outcome, stage.label, "")]
        if outcome != "running":
            remark = REMARKS.get(outcome, "")
            took = "" if outcome == "skipped" else duration(stage.elapsed(self.now))
            both = f"{remark}{took:>10}"
            return [self._row(outcome, stage.label, both if len(both + stage.label) + 4 <= self.size.width else took)]
        mark, style = MARKS[outcome]
        name = Content.assemble((f"{mark} ", style), (human.shorten(stage.label, self.size.width - 2), "bold"))
        beside = self._figures(stage, self.size.width - name.cell_length - 2)
        if beside is not None:
            return [Content.assemble(name, "  ", beside)]
        below = self._figures(stage, self.size.width - 2)
        return [name] if below is None else [name, Content.assemble("  ", below)]

    def _row(self, outcome: str, label: str, right: str) -> Content:
        mark, style = MARKS[outcome]
        width = self.size.width - 2
        name = human.shorten(label, width - len(right) - bool(right))
        return Content.assemble((f"{mark} ", style), name, (right.rjust(width - len(name)), "$text-muted"))

    def _figures(self, stage: Stage, room: int) -> Content | None:
        """What is done and how long the rest takes, in exactly `room` columns; None when it takes more.

        Then a bar, the rate and the time elapsed, as far as they have room.
        """
        elapsed, left = clock(stage.elapsed(self.now)), clock(stage.eta())
        counts = ""
        if stage.total > 1:
            wide = len(progress(stage.total, stage.total, stage.unit))
            counts = f"{progress(stage.done, stage.total, stage.unit):>{wide}}"
        shown = [counts, f"{left:>7} left" if stage.eta() is not None else f"{elapsed:>7}"]
        taken = sum(map(len, shown)) + 2
        if taken > room:
            return None
        if room - taken >= 40:
            shown[1:1] = [f"{rate(stage.rate, stage.unit) if stage.rate else '':>15}", f"{elapsed:>7}"]
            taken += 26
        length = min(room - taken - 2, BAR[1])
        drawn = bar(stage.fraction, length) if length >= BAR[0] and counts else Content("")
        text = "  ".join(shown)
        return Content.assemble(drawn, text.rjust(room - drawn.cell_length))


def bar(fraction: float, width: int) -> Content:
    """A bar of eighths on a visible ground."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (PARTS[rest] if rest else "")
    return Content.assemble((text, "$primary"), ("░" * (width - len(text)), "$border"))
