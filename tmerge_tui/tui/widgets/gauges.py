"""CPU, memory, GPU and disk of the worker as short bars with numbers."""

from __future__ import annotations

import functools

from textual.content import Content
from textual.widget import Widget

from tmerge_tui.events import ResourceSample
from tmerge_tui.machine import cores
from tmerge_tui.quantities import size
from tmerge_tui.tui.widgets.stages import bar

NAME, BAR = 7, 12  # columns


@functools.cache
def full_load() -> float:
    """Percent of one core that a process here can use."""
    seen, granted = cores()
    return 100 * (granted or seen)


class Gauges(Widget):
    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.sample: ResourceSample | None = None
        self.peaks = (0, 0)  # bytes of main memory and of the GPU's

    def show(self, sample: ResourceSample, peak_rss: int, peak_gpu: int) -> None:
        if sample != self.sample:
            self.sample, self.peaks = sample, (peak_rss, peak_gpu)
            self.refresh()

    def render(self) -> Content:
        sample = self.sample
        if sample is None:
            return Content.styled("no measurement yet", "$text-muted")
        rss, gpu = (f"peak {size(peak)}" for peak in self.peaks)
        lines = [
            *self._lines("CPU", sample.cpu / full_load(), f"{sample.cpu:.0f} % of {full_load():.0f} %"),
            *self._lines("Memory", sample.rss / max(sample.memory_total, 1), _of(sample.rss, sample.memory_total), rss),
        ]
        if sample.gpu_total:
            name = "GPU"
            if sample.gpu is not None:
                lines += self._lines(name, sample.gpu / 100, f"{sample.gpu:.0f} % busy")
                name = ""
            lines += self._lines(name, sample.gpu_used / sample.gpu_total, _of(sample.gpu_used, sample.gpu_total), gpu)
        lines.append(Content.assemble((f"{'Disk':<{NAME}}", "$text-muted"), f"{size(sample.disk_free)} free"))
        return Content("\n").join(lines)

    def _lines(self, name: str, share: float, text: str, more: str = "") -> list[Content]:
        """One line, or two when there is more to say than fits beside the bar."""
        line = Content.assemble((f"{name:<{NAME}}", "$text-muted"), bar(share, BAR), f" {text}")
        if not more:
            return [line]
        if line.cell_length + len(more) + 2 <= self.size.width:
            return [Content.assemble(line, f", {more}")]
        return [line, Content.styled(" " * (NAME + BAR + 1) + more, "$text-muted")]


def _of(used: float, total: float) -> str:
    return f"{size(used)} of {size(total)}"
