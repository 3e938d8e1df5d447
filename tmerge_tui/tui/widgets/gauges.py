"""CPU, memory, GPU and disk of the worker as short bars with numbers."""

from __future__ import annotations

import os

from textual.content import Content
from textual.widget import Widget

from tmerge_tui.events import ResourceSample
from tmerge_tui.quantities import size
from tmerge_tui.tui.widgets.stages import bar

CORES = os.cpu_count() or 1


class Gauges(Widget):
    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.sample: ResourceSample | None = None
        self.peak = 0

    def show(self, sample: ResourceSample, peak: int) -> None:
        if sample != self.sample:
            self.sample, self.peak = sample, peak
            self.refresh()

    def render(self) -> Content:
        sample = self.sample
        if sample is None:
            return Content.styled("no measurement yet", "$foreground 60%")
        rows = [
            ("CPU", sample.cpu / 100 / CORES, f"{sample.cpu:.0f} % of {CORES * 100} %"),
            (
                "Memory",
                sample.rss / max(sample.memory_total, 1),
                f"{size(sample.rss)} of {size(sample.memory_total)}, peak {size(self.peak)}",
            ),
        ]
        if sample.gpu_total:
            used = f"{size(sample.gpu_used)} of {size(sample.gpu_total)}, {sample.gpu:.0f} % busy"
            rows.append(("GPU", sample.gpu_used / sample.gpu_total, used))
        lines = [
            Content.assemble((f"{name:<7}", "$foreground 60%"), bar(share, 12), f" {text}")
            for name, share, text in rows
        ]
        lines.append(Content.assemble(("Disk   ", "$foreground 60%"), f"{size(sample.disk_free)} free"))
        return Content("\n").join(lines)
