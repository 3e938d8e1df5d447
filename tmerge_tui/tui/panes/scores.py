"""Bits per byte of everything measured, what a result has to beat, what to do next, and what the verdict says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Button

from tmerge_tui.engine.report.next_steps import as_options
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.widgets import scores
from tmerge_tui.tui.widgets.chart import Chart
from tmerge_tui.tui.widgets.static import Static


class ScoresPane(VerticalScroll, can_focus=True):
    @dataclass
    class Chosen(Message):
        """A next step that is to be tried: an entry of `next`."""

        step: dict[str, Any]

    def __init__(self, report: Report) -> None:
        super().__init__(id="scores-scroll")
        self.report = report
        self.steps: list[dict[str, Any]] = list(report.part("next") or [])

    def compose(self) -> ComposeResult:
        rows, contrasts = self.report.part("scores") or [], self.report.part("contrasts") or []
        yield Static(scores.table(rows, contrasts), id="score-table")
        if any(row["model"] == "fused" for row in rows):
            yield Static(scores.placebos(contrasts), id="placebo-table")
        if selection := self.report.part("selection"):
            yield Static(scores.chosen(selection), id="chosen", classes="block")
        if self.steps:
            with Vertical(id="next-steps"):
                yield Static(Content.styled("Next", "bold"))
                for place, step in enumerate(self.steps):
                    said = Content.assemble(f"{place + 1} {step['text']} ", (as_options(step), "$primary"))
                    with Horizontal(classes="next-step"):
                        yield Static(said, classes="next-text")
                        if step["set"]:
                            yield Button("Try it", name=str(place), compact=True, classes="next-try")
        yield Static("\n".join(self.report.results["verdict"]["sentences"]), id="sentences", markup=False)
        chart = Chart("Difference to the target over alpha", "alpha", id="alpha-curve")
        chart.number = "+.4f"
        series, alphas = scores.curves(rows)
        chart.display = len(alphas) > 1
        chart.show(series, level=0.0, places=alphas)
        yield chart

    @on(Button.Pressed, ".next-try")
    def _try(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Chosen(self.steps[int(event.button.name or 0)]))
