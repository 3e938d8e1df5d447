"""Step 6: what came of it. Verdict and scores first; then layer plans, any transport plan, text, and the files."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Input, Static, TabbedContent, TabPane

from tmerge_tui import bundle
from tmerge_tui.errors import TmergeError
from tmerge_tui.quantities import duration, size
from tmerge_tui.tui import human
from tmerge_tui.tui.screens.page import Page
from tmerge_tui.tui.screens.push import PushScreen
from tmerge_tui.tui.widgets import scores as score_table
from tmerge_tui.tui.widgets.chart import Chart
from tmerge_tui.tui.widgets.matrix import Matrix, Picker
from tmerge_tui.tui.widgets.toggles import OneOf
from tmerge_tui.worker.spawn import command, environment

REST = (("report", "report.html"), ("recipe", "recipe.yaml"))  # of a run folder, beside its models
PANES = ("scores", "layers", "plans", "text", "files")


class ResultScreen(Page):
    heading = "Result"
    step = "result"
    tips = (
        "Every difference is to the target alone, on text neither model was aligned on; lower bits per byte is better."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Home", id="result.back"),
        Binding("1", "pane('scores')", "View", id="result.view", key_display="1-5"),
        *(Binding(str(i), f"pane('{name}')", name, show=False) for i, name in enumerate(PANES[1:], 2)),
        Binding("o", "report", "Report", id="result.report", tooltip="Open report.html in a browser"),
        Binding("p", "push", "Push", id="result.push", tooltip="Upload the merged model to the Hub; asks first"),
        Binding("l", "run", "Run", id="result.run", tooltip="The run's stages and log"),
    ]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.results: dict[str, Any] = {}

    def body(self) -> ComposeResult:
        yield Static("reading the report …", id="headline")
        with TabbedContent(id="panes"):
            with TabPane("1 Scores", id="scores"), VerticalScroll(can_focus=True, id="scores-scroll"):
                yield Static("", id="score-table")
                yield Static("", id="sentences")
                yield Chart("Difference to the target over alpha", "alpha", id="alpha-curve")
            with TabPane("2 Layers", id="layers"), Horizontal(id="layers-row"):
                with Vertical(id="layers-left"):
                    yield Vertical(id="kind-row")
                    yield Matrix(id="layer-plan", waiting="no layer plan")
                with VerticalScroll(id="moved-scroll", can_focus=True):
                    yield Static("", id="moved")
            with TabPane("3 Plans", id="plans"), Vertical():
                yield Vertical(id="side-row")
                with Horizontal(id="plan-row"):
                    yield Picker(id="pick")
                    yield Matrix(id="plan", waiting="choose a pair, enter shows its plan")
            with TabPane("4 Text", id="text"), Vertical():
                yield Input(placeholder="type a prompt, enter continues it with both models", id="prompt", compact=True)
                yield Vertical(id="alpha-row")
                with Horizontal(id="text-row"):
                    for name, title in (("target", "Target"), ("fused", "Fused")):
                        with VerticalScroll(classes="card", can_focus=False) as card:
                            card.border_title = title
                            yield Static("", id=f"text-{name}", markup=False)
            with TabPane("5 Files", id="files"), VerticalScroll(can_focus=True):
                yield Static("", id="file-list")
                with Horizontal(id="file-buttons"):
                    yield Button("Open the report", id="open-report", variant="primary", compact=True)
                    yield Button("Copy the model's path", id="copy-path", compact=True)
                    yield Button("Push to the Hub", id="push", compact=True)
                yield Static("", id="push-reason")

    def on_mount(self) -> None:
        self.query_one("#sub-heading", Static).update(human.shorten(str(self.path), 60))
        self.load()

    @work(exclusive=True, group="load", exit_on_error=False)
    async def load(self) -> None:
        try:
            text = await asyncio.to_thread((self.path / "report.json").read_text, encoding="utf-8")
            self.results = json.loads(text)
            await self._show()
        except (OSError, ValueError, KeyError) as error:
            said = f"{self.path / 'report.json'}: {error}"
            self.query_one("#headline", Static).update(
                Content.assemble(("✗ the report cannot be read\n", "$error bold"), said, "\n→ ", "run the merge again")
            )

    async def _show(self) -> None:
        results = self.results
        verdict = results["verdict"]
        good = verdict.get("helped") is True and verdict.get("beats_placebos")
        mark, style = ("✓", "$success") if good else ("○", "$warning")
        self.query_one("#headline", Static).update(Content.styled(f"{mark} {verdict['headline']}", f"{style} bold"))
        self.query_one("#sentences", Static).update(Content("\n".join(verdict["sentences"])))
        self.query_one("#score-table", Static).update(score_table.table(results["scores"]))
        curves = score_table.curves(results["scores"])
        chart = self.query_one("#alpha-curve", Chart)
        chart.number = "+.4f"
        chart.display = any(len(series.points) > 1 for series in curves)
        chart.show(curves, level=0.0)
        await self._show_layers()
        await self._show_plans()
        await self._show_text()
        self._show_files()

    def action_pane(self, name: str) -> None:
        self.query_one(TabbedContent).active = name

    # layers

    async def _show_layers(self) -> None:
        kinds = list(self.results["layer_plans"])
        if kinds:
            await self.query_one("#kind-row").mount(OneOf(kinds, kinds[0], id="kind"))
            self._show_kind(kinds[0])

    @on(OneOf.Changed, "#kind")
    def _kind(self, event: OneOf.Changed) -> None:
        self._show_kind(event.value)

    def _show_kind(self, kind: str) -> None:
        self.query_one("#layer-plan", Matrix).show(
            self.results["layer_plans"][kind]["P"], f"P of {kind}: mass by layer"
        )
        rows = [row for row in self.results["projections"] if row["kind"] == kind]
        lines = [Content.styled(f"{'layer':>5}{'fused':>14}{'moved/own':>11}{'cosine':>9}", "$foreground 60%")]
        for row in rows:
            fused = f"{row['k']:,} {row['axis']}"
            lines.append(Content(f"{row['layer']:>5}{fused:>14}{row['ratio']:>11.3g}{row['cosine']:>+9.3f}"))
        self.query_one("#moved", Static).update(Content("\n").join(lines))

    # plans

    async def _show_plans(self) -> None:
        sides = list(self.results["layer_costs"])
        if sides:
            await self.query_one("#side-row").mount(OneOf(sides, sides[0], id="side"))
            self._show_side(sides[0])

    @on(OneOf.Changed, "#side")
    def _side(self, event: OneOf.Changed) -> None:
        self._show_side(event.value)

    def _show_side(self, side: str) -> None:
        picker = self.query_one(Picker)
        picker.show(self.results["layer_costs"][side], f"layer costs of {side}")
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
        plan = next(
            (h for h in self.results["heatmaps"] if (h["l"], h["m"], h["side"]) == (l, m, side)),
            None,
        )
        if plan is None and not ask:
            shown.clear(f"{where}: enter shows the plan")
            return
        if plan is None:
            shown.clear(f"{where}: rebuilding the plan …")
            try:
                plan = await self.wizard.probe.ask("plan", run=str(self.path), l=l, m=m, side=side)
            except TmergeError as error:
                shown.clear(error.found.splitlines()[0])
                return
            self.results["heatmaps"].append(plan)
        cells = base64.b64decode(plan["data"])
        shown.show_cells(plan["rows"], plan["cols"], cells, plan["lo"], plan["hi"], where)

    # text

    async def _show_text(self) -> None:
        names = [_label(one) for one in self.results["output"]]
        if len(names) > 1:
            await self.query_one("#alpha-row").mount(OneOf(names, _label(self.best), id="alpha"))
        self._show_samples(self.best)

    @property
    def best(self) -> dict[str, Any]:
        """The written model that the verdict is about."""
        outputs = self.results.get("output") or [{"alpha": None, "folder": "model"}]
        alpha = self.results.get("verdict", {}).get("alpha")
        return next((one for one in outputs if one["alpha"] == alpha), outputs[0])

    @property
    def picked(self) -> dict[str, Any]:
        """The written model whose text is shown."""
        chosen = next((row.value for row in self.query("#alpha").results(OneOf)), "")
        return next((one for one in self.results["output"] if _label(one) == chosen), self.best)

    @on(OneOf.Changed, "#alpha")
    def _another(self) -> None:
        self.workers.cancel_group(self, "generate")
        self._show_samples(self.picked)

    def _show_samples(self, output: dict[str, Any]) -> None:
        """The prompts of the recipe, as the target and this output went on with them."""
        model = "adapted" if output.get("trained") else "fused"
        for column, name in (("target", "target"), ("fused", model)):
            samples = [
                s
                for s in self.results.get("samples", [])
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
        for name in ("target", "fused"):
            self.query_one(f"#text-{name}", Static).update(Content.styled(f"{prompt}▸ …", "$foreground 60%"))
        for name in ("target", "fused"):
            shown = self.query_one(f"#text-{name}", Static)
            try:
                said = await self.wizard.probe.ask(
                    "generate", run=str(self.path), model=name, prompt=prompt, folder=folder
                )
            except TmergeError as error:
                shown.update(Content.styled(f"✗ {error}", "$error"))
                continue
            speed = f"{said['tokens']} tokens in {duration(said['seconds'])}"
            shown.update(Content.assemble((prompt, "bold"), "▸", said["text"], (f"\n\n{speed}", "$foreground 60%")))

    # files

    def _show_files(self) -> None:
        outputs = self.results["output"]
        lines = []
        for one in outputs:
            style = "bold" if one is self.best else "$foreground 60%"
            lines.append(_row(f"alpha {_label(one)}", str(self.path / one["folder"]), style))
        lines += [_row(name, str(self.path / file)) for name, file in REST]
        lines.append(Content(""))
        if len(outputs) > 1:
            lines.append(Content.styled(f"{self.best['folder']}, which the verdict is about:", "$foreground 60%"))
        try:
            files = sorted((file.name, file.stat().st_size) for file in self.model_folder.iterdir() if file.is_file())
            lines += [Content(f"{size(count):>8}  {name}") for name, count in files]
        except OSError as error:
            lines.append(Content.styled(f"✗ {self.model_folder}: {error.strerror}", "$error"))
        self.query_one("#file-list", Static).update(Content("\n").join(lines))
        reason = push_refused()
        self.query_one("#push", Button).disabled = bool(reason)
        self.query_one("#push-reason", Static).update(Content.styled(reason and f"Push: {reason}", "$foreground 60%"))

    @property
    def model_folder(self) -> Path:
        return self.path / self.best["folder"]

    @on(Button.Pressed, "#copy-path")
    def _copy(self) -> None:
        self.app.copy_to_clipboard(str(self.model_folder))
        self.notify(str(self.model_folder), title="Copied")

    @on(Button.Pressed, "#open-report")
    @work(thread=True, exit_on_error=False, group="browser")
    def action_report(self) -> None:
        """Over SSH there is no browser to open: the path is shown either way."""
        report = self.path / "report.html"
        opened = bundle.open_in_browser(report.as_uri())
        said = str(report) if opened else f"{report}\nno browser here: copy the file to where there is one"
        self.app.call_from_thread(self.notify, said, title="Report")

    @on(Button.Pressed, "#push")
    @work
    async def action_push(self) -> None:
        reason = push_refused()
        if reason:
            self.notify(reason, title="Cannot push", severity="warning")
            return
        models = self.results["models"]
        licences = ", ".join(f"{role} {models[role].get('licence') or 'not stated'}" for role in ("source", "target"))
        answer = await self.app.push_screen_wait(PushScreen(str(self.model_folder), f"licences: {licences}"))
        if answer is not None:
            self.notify(f"uploading to {answer[0]}", title="Push")
            self._upload(*answer)

    @work(exit_on_error=False, group="push")
    async def _upload(self, repo: str, private: bool) -> None:
        """The same `tmerge push` that a script would run: it needs the engine, which this process never imports."""
        arguments = ["push", str(self.path), "--repo", repo, "--model", self.model_folder.name, "--yes"]
        process = await asyncio.create_subprocess_exec(
            *command(),
            *arguments,
            *([] if private else ["--public"]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        out, err = await process.communicate()
        if process.returncode == 0:
            self.notify(out.decode().strip(), title="Pushed", timeout=15)
        else:
            said = err.decode(errors="replace").strip() or f"exit code {process.returncode}"
            self.notify(said, title="Not pushed", severity="error", timeout=15)

    def action_run(self) -> None:
        self.wizard.show_run(self.path)

    def action_back(self) -> None:
        self.wizard.go_home()


def _label(output: dict[str, Any]) -> str:
    return f"{output['alpha']:g}" + (" trained" if output.get("trained") else "")


def _row(name: str, text: str, style: str = "") -> Content:
    return Content.assemble((f"{name:<20}", "$foreground 60%"), (text, style))


def push_refused() -> str:
    """Why a push is not possible; empty when it is."""
    from tmerge_tui.tui import catalog

    if catalog.login() == "not logged in":
        return "not logged in: run `hf auth login` first"
    return ""
