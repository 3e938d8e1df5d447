"""Where everything lies, and what can be done with it: open the report, copy a path, push."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Button

from tmerge_tui.quantities import size
from tmerge_tui.tui.panes.report import Report, label
from tmerge_tui.tui.widgets.scores import FAINT
from tmerge_tui.tui.widgets.static import Static

REST = (("report", "report.html"), ("recipe", "recipe.yaml"))  # of a run folder, beside its models


class FilesPane(VerticalScroll, can_focus=True):
    """`refused` says why a push is not possible. The buttons are answered by the screen."""

    def __init__(self, report: Report, refused: str) -> None:
        super().__init__()
        self.report, self.refused = report, refused

    def compose(self) -> ComposeResult:
        yield Static(self._list(), id="file-list")
        with Horizontal(id="file-buttons"):
            yield Button("Open the report", id="open-report", variant="primary", compact=True)
            yield Button("Copy the model's path", id="copy-path", compact=True)
            yield Button("Push to the Hub", id="push", compact=True, disabled=bool(self.refused))
        yield Static(Content.styled(self.refused and f"Push: {self.refused}", FAINT), id="push-reason")

    def _list(self) -> Content:
        report = self.report
        lines = []
        for one in report.outputs:
            style = "bold" if one is report.best else FAINT
            lines.append(_row(f"alpha {label(one)}", str(report.path / one["folder"]), style))
        lines += [_row(name, str(report.path / file)) for name, file in REST]
        lines.append(Content(""))
        if len(report.outputs) > 1:
            lines.append(Content.styled(f"{report.best['folder']}, which the verdict is about:", FAINT))
        folder = report.model_folder
        try:
            files = sorted((file.name, file.stat().st_size) for file in folder.iterdir() if file.is_file())
            lines += [Content(f"{size(count):>8}  {name}") for name, count in files]
        except OSError as error:
            lines.append(Content.styled(f"✗ {folder}: {error.strerror}", "$error"))
        return Content("\n").join(lines)


def _row(name: str, text: str, style: str = "") -> Content:
    return Content.assemble((f"{name:<20}", FAINT), (text, style))
