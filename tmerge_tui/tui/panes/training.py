"""Trained models against the target and against each other, and the loss of every training."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll

from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.engine.report.training_verdict import facts, told_curve
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.widgets import scores
from tmerge_tui.tui.widgets.chart import Chart
from tmerge_tui.tui.widgets.static import Static


class TrainingPane(VerticalScroll, can_focus=True):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self.adaptation = report.part("adaptation")

    def compose(self) -> ComposeResult:
        found = self.adaptation
        yield Static("", classes="block", id="trained")
        yield Static("", classes="block", id="beaten")
        yield Static("\n".join(facts(found)), classes="block", markup=False)
        trainings = found.get("trainings") or []
        for method in dict.fromkeys(row["model"] for row in trainings):
            chart = Chart(f"{beside_trained(method)}: loss, nats a token, a line for each seed", "step", classes="loss")
            curves = [row["curve"] for row in trainings if row["model"] == method]
            chart.show(scores.losses([[(float(step), loss) for step, loss in curve] for curve in curves]))
            yield chart
            told = [told_curve(row) for row in trainings if row["model"] == method and row.get("told")]
            if told:
                label = f"{beside_trained(method)}: validation text, bits per byte after every pass"
                chart = Chart(label, "step", classes="loss")
                chart.show(scores.losses([[(float(step), value) for step, value in points] for points in told]))
                yield chart

    def on_resize(self) -> None:
        """Tables as wide as there is room for."""
        room, contrasts = self.app.size.width, self.adaptation["contrasts"]
        self.query_one("#trained", Static).update(scores.trained(self.adaptation["rows"], room))
        beaten = self.query_one("#beaten", Static)
        beaten.display = bool(contrasts)
        beaten.update(scores.trained_contrasts(contrasts, room))
