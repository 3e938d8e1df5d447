"""Layer plans P of every projection, and how much of each layer moved."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content

from tmerge_tui.quantities import number
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.widgets.matrix import Matrix
from tmerge_tui.tui.widgets.scores import FAINT
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toggles import OneOf

KIND = 5  # columns of a projection's name


class LayersPane(Horizontal):
    def __init__(self, report: Report) -> None:
        super().__init__(id="layers-row")
        self.plans = report.part("layer_plans")
        self.moved = report.part("projections") or []

    def compose(self) -> ComposeResult:
        kinds = list(self.plans)
        with Vertical(id="layers-left"):
            with Vertical(id="kind-row"):
                yield OneOf(kinds, kinds[0], id="kind")
            yield Matrix(id="layer-plan", waiting="no layer plan")
        with VerticalScroll(id="moved-scroll", can_focus=True):
            yield Static("", id="moved")

    def on_mount(self) -> None:
        self._show(next(iter(self.plans)))

    @on(OneOf.Changed, "#kind")
    def _kind(self, event: OneOf.Changed) -> None:
        self._show(event.value)

    def _show(self, kind: str) -> None:
        self.query_one("#layer-plan", Matrix).show(self.plans[kind]["P"], f"P of {kind}: mass by layer")
        several = kind not in {row["kind"] for row in self.moved}  # one plan for all kinds, as ot_fusion has it
        head = f"{'':{KIND * several}}{'layer':>5}{'fused':>14}{'moved/own':>11}{'cosine':>9}"
        lines = [Content.styled(head, FAINT)]
        for row in self.moved:
            if several or row["kind"] == kind:
                name = f"{row['kind']:<{KIND}}" if several else ""
                fused = f"{row['k']:,} {row['axis']}"
                figures = f"{row['layer']:>5}{fused:>14}{number(row['ratio']):>11}{number(row['cosine']):>9}"
                lines.append(Content(name + figures))
        self.query_one("#moved", Static).update(Content("\n").join(lines) if len(lines) > 1 else "")
