"""Benchmarks: what each model achieves in every task, and whether that differs from the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from tmerge_tui.engine.report.names import beside_trained, title
from tmerge_tui.engine.report.verdict import benchmark_better
from tmerge_tui.quantities import NONE, bits, count, signed
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.widgets.scores import FAINT, WORDS
from tmerge_tui.tui.widgets.static import Static


class BenchmarksPane(VerticalScroll, can_focus=True):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self.rows: Sequence[Mapping[str, Any]] = report.part("benchmarks")

    def compose(self) -> ComposeResult:
        tasks = dict.fromkeys((row["task"], row["metric"]) for row in self.rows)
        for task in tasks:
            yield Static(_table([row for row in self.rows if (row["task"], row["metric"]) == task]), classes="block")


def _table(rows: Sequence[Mapping[str, Any]]) -> Content:
    first = rows[0]
    partial = "" if first["limit"] is None else f", partial: {first['limit']} questions at most"
    head = f"{first['task']}, {first['metric']}, {count(first['questions'])} questions{partial}"
    lines = [Content.styled(head, "bold")]
    lines.append(Content.styled(f"{'':<22}{'alpha':>6}{'value':>8}{'to target':>10} 95 % interval", FAINT))
    for row in rows:
        alpha = NONE if row["alpha"] is None else f"{row['alpha']:g}"
        parts: list[Any] = [f"{_name(row['model']):<22}{alpha:>6}{bits(row['value']):>8}"]
        if row["difference"] is not None:
            better = benchmark_better(row)
            style = {True: "", False: "$error", None: FAINT}[better]
            low, high = row["difference_low"], row["difference_high"]
            ends = "" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]"
            parts += [
                (f"{signed(row['difference']):>10}", style),
                (ends, FAINT),
                (f" {WORDS[better]}" if ends else "", style),
            ]
        lines.append(Content.assemble(*parts))
    return Content("\n").join(lines)


def _name(model: str) -> str:
    return title(model) if model == "fused" else beside_trained(model)
