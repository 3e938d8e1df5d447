"""Any transport plan Q: a pair of layers is picked on the map of layer costs."""

from __future__ import annotations

import base64
from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from tmerge_tui.errors import TmergeError
from tmerge_tui.tui.helper import Probe
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.widgets.matrix import Matrix, Picker
from tmerge_tui.tui.widgets.toggles import OneOf


class PlansPane(Vertical):
    def __init__(self, report: Report, probe: Probe) -> None:
        super().__init__()
        self.report, self.probe = report, probe
        self.costs = report.part("layer_costs")
        self.plans: list[dict[str, Any]] = list(report.part("heatmaps") or [])  # those of the report, then those asked

    def compose(self) -> ComposeResult:
        sides = list(self.costs)
        with Vertical(id="side-row"):
            yield OneOf(sides, sides[0], id="side")
        with Horizontal(id="plan-row"):
            yield Picker(id="pick")
            yield Matrix(id="plan", waiting="choose a pair, enter shows its plan")

    def on_mount(self) -> None:
        self._show_side(next(iter(self.costs)))

    @on(OneOf.Changed, "#side")
    def _side(self, event: OneOf.Changed) -> None:
        self._show_side(event.value)

    def _show_side(self, side: str) -> None:
        picker = self.query_one(Picker)
        picker.show(self.costs[side], f"layer costs of {side}")
        self._pair(picker.cursor, ask=False)

    @on(Picker.Moved)
    def _moved(self, event: Picker.Moved) -> None:
        self._pair(event.cell, ask=False)

    @on(Picker.Taken)
    def _taken(self, event: Picker.Taken) -> None:
        self._pair(event.cell, ask=True)

    @work(exclusive=True, group="plan", exit_on_error=False)
    async def _pair(self, cell: tuple[int, int], ask: bool) -> None:
        """The plan of one pair: from the report, or rebuilt from the run's duals by the helper process."""
        l, m = cell
        side = self.query_one("#side", OneOf).value
        shown = self.query_one("#plan", Matrix)
        where = f"{side}  target {l} ← source {m}"
        plan = next((h for h in self.plans if (h["l"], h["m"], h["side"]) == (l, m, side)), None)
        if plan is None and not ask:
            shown.clear(f"{where}: enter shows the plan")
            return
        if plan is None:
            shown.clear(f"{where}: rebuilding the plan …")
            try:
                plan = await self.probe.ask("plan", run=str(self.report.path), l=l, m=m, side=side)
            except TmergeError as error:
                shown.clear(error.found.splitlines()[0])
                return
            self.plans.append(plan)
        cells = base64.b64decode(plan["data"])
        shown.show_cells(plan["rows"], plan["cols"], cells, plan["lo"], plan["hi"], where)
