"""What `alpha: auto` chose for each kind of projection, and everything it tried on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from tmerge_tui.quantities import bits, count, signed
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.widgets.chart import Chart, Series
from tmerge_tui.tui.widgets.scores import FAINT
from tmerge_tui.tui.widgets.static import Static

STYLES = (("$primary", "●"), ("$accent", "■"), ("$secondary", "◆"), ("$warning", "▲"), ("$foreground", "○"))


class StrengthPane(VerticalScroll, can_focus=True):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self.found: Mapping[str, Any] = report.part("strength")

    def compose(self) -> ComposeResult:
        found = self.found
        chosen = "  ".join(f"{kind} {alpha:g}" for kind, alpha in found["strengths"].items())
        told = (
            f"Chosen on {count(found['texts'])} validation texts: {bits(found['target'])} bits per byte before, "
            f"{bits(found['chosen'])} after. A step was kept only when its 95 % interval lay below 0."
        )
        yield Static(Content.assemble((chosen, "bold"), "\n", (told, FAINT)), classes="block")
        series, places = _curves(found["trials"])
        chart = Chart("Difference to the target over the strength of one kind", "alpha", id="strength-curve")
        chart.number = "+.4f"
        chart.show(series, level=0.0, places=places)
        yield chart
        yield Static(_trials(found["trials"]), classes="block")


def _trials(trials: Sequence[Mapping[str, Any]]) -> Content:
    lines = [Content.styled(f"{'tried':<8}{'alpha':>6}{'bits/byte':>11}{'to best':>10} 95 % interval", FAINT)]
    for t in trials:
        start = f"{t['kind']:<8}{t['alpha']:>6g}{bits(t['bits_per_byte']):>11}"
        known = all(t[name] is not None for name in ("difference", "low", "high"))
        change = f"{signed(t['difference']):>10} [{t['low']:+.4f}, {t['high']:+.4f}]" if known else ""
        lines.append(Content.assemble(start, (change, FAINT), (" kept" if t["kept"] else "", "bold")))
    return Content("\n").join(lines)


def _curves(trials: Sequence[Mapping[str, Any]]) -> tuple[list[Series], list[str]]:
    rows = [t for t in trials if t["against_target"] is not None]
    alphas = sorted({0.0} | {t["alpha"] for t in rows})
    made = []
    for place, kind in enumerate(dict.fromkeys(t["kind"] for t in rows)):
        points = {float(alphas.index(t["alpha"])): t["against_target"] for t in rows if t["kind"] == kind}
        made.append(Series(kind, tuple(sorted(points.items())), *STYLES[place % len(STYLES)]))
    return made, [f"{alpha:g}" for alpha in alphas]
