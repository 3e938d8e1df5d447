"""Bits per byte of everything measured, what a result has to beat, what to do next, and what the verdict says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
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
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "next_step", "Try next", tooltip="To the next step that can be tried; enter opens Method with it"),
    ]

    @dataclass
    class Chosen(Message):
        """A next step that is to be tried: an entry of `next`."""

        step: dict[str, Any]

    def __init__(self, report: Report) -> None:
        super().__init__(id="scores-scroll")
        self.report = report
        self.steps: list[dict[str, Any]] = list(report.part("next") or [])

    def compose(self) -> ComposeResult:
        rows = self.report.part("scores") or []
        yield Static("", id="score-table")
        if any(row["model"] == "fused" for row in rows):
            yield Static("", id="placebo-table")
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

    def on_resize(self) -> None:
        """Tables as wide as there is room for."""
        rows, contrasts = self.report.part("scores") or [], self.report.part("contrasts") or []
        room = self.app.size.width
        self.query_one("#score-table", Static).update(scores.table(rows, contrasts, room))
        for table in self.query("#placebo-table").results(Static):
            table.update(scores.placebos(contrasts, room))

    def action_next_step(self) -> None:
        """From one step to the next, and round again."""
        buttons = list(self.query(".next-try").results(Button))
        if buttons:
            here = next((place for place, button in enumerate(buttons) if button.has_focus), -1)
            buttons[(here + 1) % len(buttons)].focus()

    @on(Button.Pressed, ".next-try")
    def _try(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Chosen(self.steps[int(event.button.name or 0)]))
