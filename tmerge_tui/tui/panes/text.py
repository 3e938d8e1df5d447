"""What target and result make of a prompt, side by side: those of the recipe, and any that is typed."""

from __future__ import annotations

from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input

from tmerge_tui.errors import TmergeError
from tmerge_tui.quantities import duration
from tmerge_tui.tui.helper import Probe
from tmerge_tui.tui.panes.report import Report, label
from tmerge_tui.tui.widgets.scores import FAINT
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toggles import OneOf

COLUMNS = {"target": "Target", "fused": "Fused"}


class TextPane(Vertical):
    def __init__(self, report: Report, probe: Probe) -> None:
        super().__init__()
        self.report, self.probe = report, probe

    def compose(self) -> ComposeResult:
        yield Input(placeholder="type a prompt, enter continues it with both models", id="prompt", compact=True)
        with Vertical(id="alpha-row"):
            names = [label(one) for one in self.report.outputs]
            if len(names) > 1:
                yield OneOf(names, label(self.report.best), id="alpha")
        with Horizontal(id="text-row"):
            for name, title in COLUMNS.items():
                with VerticalScroll(classes="card", can_focus=False) as card:
                    card.border_title = title
                    yield Static("", id=f"text-{name}", markup=False)

    def on_mount(self) -> None:
        self._show_samples(self.report.best)

    @property
    def picked(self) -> dict[str, Any]:
        """The written model whose text is shown."""
        chosen = next((row.value for row in self.query("#alpha").results(OneOf)), "")
        return next((one for one in self.report.outputs if label(one) == chosen), self.report.best)

    @on(OneOf.Changed, "#alpha")
    def _another(self) -> None:
        self.workers.cancel_group(self, "generate")
        self._show_samples(self.picked)

    def _show_samples(self, output: dict[str, Any]) -> None:
        """The prompts of the recipe, as the target and this output went on with them."""
        trained = (self.report.part("adaptation") or {}).get("result", "adapted")
        model = trained if output.get("trained") else "fused"
        for column, name in (("target", "target"), ("fused", model)):
            samples = [
                s
                for s in self.report.part("samples") or []
                if s["model"] == name and (name != "fused" or s.get("alpha") in (None, output["alpha"]))
            ]
            text = "\n\n".join(f"{s['prompt']}▸{s['text']}" for s in samples)
            self.query_one(f"#text-{column}", Static).update(Content(text))

    @on(Input.Submitted, "#prompt")
    def _prompted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.generate(event.value)

    @work(exclusive=True, group="generate", exit_on_error=False)
    async def generate(self, prompt: str) -> None:
        folder = self.picked["folder"]
        for name in COLUMNS:
            self.query_one(f"#text-{name}", Static).update(Content.styled(f"{prompt}▸ …", FAINT))
        for name in COLUMNS:
            shown = self.query_one(f"#text-{name}", Static)
            try:
                said = await self.probe.ask(
                    "generate", run=str(self.report.path), model=name, prompt=prompt, folder=folder
                )
            except TmergeError as error:
                shown.update(Content.styled(f"✗ {error}", "$error"))
                continue
            speed = f"{said['tokens']} tokens in {duration(said['seconds'])}"
            shown.update(Content.assemble((prompt, "bold"), "▸", said["text"], (f"\n\n{speed}", FAINT)))
