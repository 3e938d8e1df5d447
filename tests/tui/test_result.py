"""The result: verdict, scores, plans, text, files, push."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Button, TabbedContent

from tests.engine.pair import make_pair, recipe_of
from tests.engine.report.sample_results import contrasts_of, make_measured, make_safety, scores_of
from tests.tui.doubles import FakeProbe, screen_text, settle
from tests.tui.fakes import heat, write_run
from tmerge_tui.engine import pipeline
from tmerge_tui.errors import ModelError
from tmerge_tui.events import Event, TrainingStep
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens import result
from tmerge_tui.tui.screens.method import MethodScreen
from tmerge_tui.tui.screens.result import PANES, ResultScreen
from tmerge_tui.tui.widgets import scores as score_table
from tmerge_tui.tui.widgets.chart import Chart
from tmerge_tui.tui.widgets.matrix import Matrix, Picker


@pytest.fixture
def done(tmp_path: Path) -> Path:
    return write_run(tmp_path / "done").path


async def show(app: TmergeApp, pilot, path: Path, pane: str) -> ResultScreen:
    app.show_result(path)
    await settle(pilot)
    await pilot.press(pane)
    await settle(pilot)
    assert isinstance(app.screen, ResultScreen)
    return app.screen


async def test_scores_come_with_intervals_and_words(app: TmergeApp, done: Path) -> None:
    async with app.run_test(size=(160, 60)) as pilot:
        await show(app, pilot, done, "1")
        text = screen_text(app)
        for expected in (
            "Fusion helped at alpha 0.05",
            "placebo: shrunk",
            "placebo: permuted",
            "2.1695   -0.0011 [-0.0015, -0.0007] better",
            "Difference to the target over alpha",
            "● fused",
        ):
            assert expected in text, expected


def with_parts(path: Path, **parts: Any) -> None:
    """Puts them into report.json; None takes one away."""
    file = path / "report.json"
    report = json.loads(file.read_text()) | parts
    file.write_text(json.dumps({key: part for key, part in report.items() if part is not None}))


async def test_training_benchmarks_and_strength_have_panes_of_their_own(app: TmergeApp, done: Path) -> None:
    with_parts(done, **make_measured())
    async with app.run_test(size=(80, 24)) as pilot:
        await show(app, pilot, done, "2")
        text = screen_text(app)
        assert "1 Scores  2 Train  3 Tasks  4 Alpha  5 Layer  6 Plan  7 Text  8 Files  9 More" in text
        assert "fine-tuned (SFT)         2.1040 0.0017   -0.0666 [-0.0670, -0.0662] better" in text
        assert "fused, adapted         fine-tuned (SFT)           +0.0019 worse" in text
        await show(app, pilot, done, "1")
        shown = str(app.screen.query_one("#chosen").render())
        assert "on 200 validation texts" in shown
        assert [line.endswith("chosen") for line in shown.splitlines()] == [False, False, False, False, False, True]
        await show(app, pilot, done, "2")
        charts = [chart for chart in app.screen.query(".loss").results(Chart)]
        assert [chart.caption.split(":")[0] for chart in charts] == ["fused, adapted", "fine-tuned (SFT)", "distilled"]
        assert all(len(chart.series) == 2 and len(chart.series[0].points) == 6 for chart in charts)
        await show(app, pilot, done, "3")
        text = screen_text(app)
        assert "rivers, accuracy by bytes, 40 questions" in text
        assert "fused                    0.1  0.6000   +0.1000 [+0.0200, +0.2000] better" in text
        await show(app, pilot, done, "4")
        text = " ".join(screen_text(app).split())
        assert "q 0.05 k 0" in text and "200 validation texts: 2.2000 bits per byte before, 2.1000 after" in text
        assert "alpha 0" in text and "● q" in text


async def test_what_else_has_changed(app: TmergeApp, done: Path) -> None:
    with_parts(done, **make_measured())
    async with app.run_test(size=(120, 90)) as pilot:
        await show(app, pilot, done, "9")
        text = screen_text(app)
        assert "fused, not trained         0.1     2.1829   +0.0123  +0.0103 to +0.0143 worse" in text
        assert "Safety screen" in text and "A screen, not a certificate" in text
        assert "25.0 % (20.0 % to 30.0 %)" in text and "Texts that changed most: fused, adapted" in text
        assert "gained most" in text and "lost most" in text and text.count("alert('x')") == 2, "as it is"


async def test_what_is_declined(app: TmergeApp, done: Path) -> None:
    with_parts(done, safety=make_safety())
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await show(app, pilot, done, "1")
        await pilot.press(str([pane.name for pane in screen.panes].index("more") + 1))
        await settle(pilot)
        text = " ".join(screen_text(app).split())
        assert "declines 12 points less than the target (68 % of 40 prompts" in text
        assert "A screen, not a certificate" in text


async def test_control_characters_of_a_text_do_not_reach_the_terminal(app: TmergeApp, done: Path) -> None:
    parts = make_measured()
    parts["attribution"]["excerpts"][0]["gained"][0]["text"] = "one\x1b[31mtwo [bold]three"
    with_parts(done, **parts)
    async with app.run_test(size=(120, 90)) as pilot:
        await show(app, pilot, done, "9")
        assert "one[31mtwo [bold]three" in screen_text(app)


@pytest.mark.parametrize(
    "parts",
    [
        ("adaptation", "heatmaps", "contrasts"),
        ("benchmarks", "projections", "next"),
        ("strength", "layer_costs", "samples", "selection", "general", "attribution", "safety"),
        ("layer_plans", "scores", "output", "models", "general"),
    ],
    ids=" ".join,
)
async def test_what_a_report_lacks_is_not_drawn_and_nothing_else_suffers(
    app: TmergeApp, done: Path, parts: tuple[str, ...]
) -> None:
    with_parts(done, **make_measured() | dict.fromkeys(parts))
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await show(app, pilot, done, "1")
        assert "cannot be read" not in screen_text(app) and "Fusion helped" in screen_text(app)
        missing = {pane.name for pane in PANES} - {pane.name for pane in screen.panes}
        assert missing == {pane.name for pane in PANES if pane.needs and set(pane.needs) <= set(parts)}
        for place, pane in enumerate(screen.panes, 1):
            await pilot.press(str(place))
            await settle(pilot)
            assert screen.query_one(TabbedContent).active == pane.name


async def test_the_next_step_opens_the_method_with_it_filled_in(app: TmergeApp, done: Path) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await show(app, pilot, done, "1")
        text = " ".join(screen_text(app).split())
        assert "1 Confirm it:" in text and "--set seed=1 --set fusion.alpha=0.05" in text
        buttons = list(screen.query(".next-try").results(Button))
        assert len(buttons) == 3
        buttons[-1].press()
        await settle(pilot)
        assert isinstance(app.screen, MethodScreen)
        assert app.draft.recipe().adaptation.compare == ("sft", "distill")
        assert app.draft.get("source.model") == "org/source-llama", "everything else is as it was"
        screen = await show(app, pilot, done, "1")
        await pilot.press("e")
        await settle(pilot)
        assert app.draft.recipe().adaptation is None


def test_green_is_for_what_beats_its_placebos_alone() -> None:
    """Reference: the intervals. A placebo that is better than the target is not, nor is a result that equals it."""

    def green(curves: dict[float, tuple[float, float, float]]) -> list[str]:
        shown = score_table.table(scores_of(curves), contrasts_of(curves))
        spans = [span for span in shown.spans if "$success" in str(span.style)]
        lines = [shown.plain[: span.start].rsplit("\n", 1)[-1].split()[0] for span in spans]
        return list(dict.fromkeys(lines))

    assert green({0.1: (-0.0030, 0.0003, 0.0010)}) == ["fused"]
    assert green({0.1: (-0.0030, -0.0030, 0.0010)}) == [], "better than the target, not than its placebo"
    assert green({0.1: (0.0071, 0.0135, 0.0168)}) == [], "worse than the target"


async def test_the_report_of_a_real_run(app: TmergeApp, tmp_path: Path) -> None:
    """With training, benchmarks and a searched strength: what the engine writes is what the screen reads."""
    questions = [{"context": f"{i} rivers", "choices": ["meet", "part"], "label": i % 2} for i in range(6)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    adaptation = {"samples": 16, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 1}
    recipe = recipe_of(
        make_pair(tmp_path),
        fusion={"alpha": "auto"},
        calibration={"validation": 8, "samples": 60},
        evaluation={"choices": [str(tmp_path / "q.jsonl")], "general": True, "attribution": {"threshold": 0.1}},
        adaptation={**adaptation, "learning_rate": 1e-3, "max_steps": 3, "compare": ["sft"], "checkpoints": 1},
    )
    run = RunDir.create(recipe.output)
    seen: list[Event] = []
    pipeline.run(recipe, run, seen.append)
    steps = [event for event in seen if isinstance(event, TrainingStep)]
    assert {event.method for event in steps} == {"adapted", "sft"}
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await show(app, pilot, run.path, "1")
        assert [pane.name for pane in screen.panes] == [pane.name for pane in PANES], "every part is there"
        for place, words in enumerate(("fused", "fine-tuned (SFT)", "accuracy by bytes", "validation texts"), 1):
            await show(app, pilot, run.path, str(place))
            assert words in screen_text(app), words
        await show(app, pilot, run.path, "7")
        assert "trained›" in screen_text(app) and screen_text(app).count("Two rivers▸") == 2
        await show(app, pilot, run.path, "9")
        text = screen_text(app)
        assert "on general text" in text and "share of the gap closed" in text and "placebo: rows shrunk" in text


async def test_layer_plans_of_every_projection(app: TmergeApp, done: Path) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await show(app, pilot, done, "2")
        plan = screen.query_one("#layer-plan", Matrix)
        assert (plan.row_count, plan.column_count) == (4, 6)
        assert plan.caption == "P of q: mass by layer"
        screen.query_one("#kind").focus()
        await pilot.press("right")
        await pilot.pause()
        assert plan.caption == "P of k: mass by layer"
        assert "moved/own" in screen_text(app)


async def test_any_plan_by_layer_source_layer_and_side(app: TmergeApp, probe: FakeProbe, done: Path) -> None:
    tile = heat(1, 1, "qkv.in")
    probe.answers["plan"] = {**vars(tile)}
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await show(app, pilot, done, "3")
        plan = screen.query_one("#plan", Matrix)
        assert plan.row_count, "the report brings the plan of the first pair"
        screen.query_one(Picker).focus()
        await pilot.press("down", "right")
        await settle(pilot)
        assert "enter shows the plan" in plan.waiting
        await pilot.press("enter")
        await settle(pilot)
        assert probe.asked[-1] == ("plan", {"run": str(done), "l": 1, "m": 1, "side": "qkv.in"})
        assert (plan.row_count, plan.column_count) == (48, 64)


async def test_text_from_both_models(app: TmergeApp, probe: FakeProbe, done: Path) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await show(app, pilot, done, "4")
        screen.query_one("#prompt").focus()
        await pilot.press(*"two", "enter")
        await settle(pilot)
        asked = [args for call, args in probe.asked if call == "generate"]
        assert [(a["model"], a["prompt"], a["folder"]) for a in asked] == [
            ("target", "two", "model-alpha-0.05"),
            ("fused", "two", "model-alpha-0.05"),
        ]
        assert screen_text(app).count("two▸ and go on together") == 2
        probe.fails["generate"] = ModelError("no model in x", "", "run the merge again")
        await pilot.press("enter")
        await settle(pilot)
        assert "✗ no model in x" in screen_text(app)


async def test_text_of_the_model_that_is_picked(app: TmergeApp, probe: FakeProbe, done: Path) -> None:
    """At first that of the verdict, which need not be the first alpha."""
    report = json.loads((done / "report.json").read_text())
    report["verdict"]["alpha"] = 0.1
    report["output"] = [{"alpha": a, "folder": f"model-alpha-{a}", "trained": False} for a in (0.02, 0.1)]
    report["output"].insert(0, {"alpha": 0.2, "folder": "model", "trained": True})
    written = [("target", None, "T"), ("fused", 0.02, "weak"), ("fused", 0.1, "best"), ("adapted", None, "taught")]
    report["samples"] = [{"model": m, "alpha": a, "prompt": "So", "text": t} for m, a, t in written]
    (done / "report.json").write_text(json.dumps(report))
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await show(app, pilot, done, "4")
        text = screen_text(app)
        assert "So▸T" in text and "So▸best" in text and "weak" not in text and "‹0.1›" in text and "taught" not in text
        screen.query_one("#alpha").focus()
        await pilot.press("left")
        await settle(pilot)
        assert "So▸weak" in screen_text(app) and "best" not in screen.query_one("#text-fused").render().plain
        await pilot.press("left")
        await settle(pilot)
        assert "‹0.2 trained›" in screen_text(app) and "So▸taught" in screen_text(app)
        screen.query_one("#prompt").focus()
        await pilot.press(*"two", "enter")
        await settle(pilot)
        assert {args["folder"] for call, args in probe.asked if call == "generate"} == {"model"}
        assert screen.model_folder == done / "model-alpha-0.1", "what is copied and pushed is the verdict's"


async def test_files_and_the_push_button_with_its_reason(app: TmergeApp, done: Path, monkeypatch) -> None:
    monkeypatch.setattr(result, "push_refused", lambda: "not logged in: run `hf auth login` first")
    (done / "model-alpha-0.05").mkdir()
    (done / "model-alpha-0.05" / "model.safetensors").write_bytes(bytes(1500))
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await show(app, pilot, done, "5")
        text = screen_text(app)
        assert "report.html" in text and "model-alpha-0.1" in text and "not logged in" in text
        assert "model-alpha-0.05, which the verdict is about:" in text and "1.5 kB  model.safetensors" in text
        assert screen.query_one("#push").disabled
        screen.query_one("#copy-path").focus()
        await pilot.press("enter")
        await pilot.pause()
        assert app.clipboard == str(done / "model-alpha-0.05")


async def test_a_model_that_has_gone_is_told(app: TmergeApp, done: Path) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        await show(app, pilot, done, "5")
        assert "model-alpha-0.05: No such file or directory" in " ".join(screen_text(app).split())


async def test_push_asks_and_is_private_unless_told_otherwise(app: TmergeApp, done: Path, monkeypatch) -> None:
    pushed = []
    monkeypatch.setattr(result, "push_refused", lambda: "")
    monkeypatch.setattr(ResultScreen, "_upload", lambda self, repo, private: pushed.append((repo, private)))
    async with app.run_test(size=(100, 30)) as pilot:
        await show(app, pilot, done, "5")
        await pilot.press("p")
        await pilot.pause()
        await pilot.press(*"nonsense", "enter")
        await pilot.pause()
        assert pushed == []
        await pilot.press(*"/model", "enter")
        await settle(pilot)
        assert pushed == [("nonsense/model", True)]
        await pilot.press("p")
        await pilot.pause()
        await pilot.press("escape")
        await settle(pilot)
        assert len(pushed) == 1


async def test_a_broken_report_is_told(app: TmergeApp, done: Path) -> None:
    (done / "report.json").write_text('{"version": 1')
    async with app.run_test(size=(100, 30)) as pilot:
        await show(app, pilot, done, "1")
        assert "✗ the report cannot be read" in screen_text(app)


@pytest.mark.parametrize(("code", "said"), [(0, "https://hub/me/merged"), (1, "found: not allowed")])
async def test_push_runs_the_command_and_says_what_it_said(
    app: TmergeApp, done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, said: str
) -> None:
    """Reference: a stand-in for the program that notes its arguments."""
    program = tmp_path / "program.py"
    stream = "stdout" if code == 0 else "stderr"
    program.write_text(
        f"import json, pathlib, sys\n"
        f"pathlib.Path({str(tmp_path / 'seen')!r}).write_text(json.dumps(sys.argv[1:]))\n"
        f"print({said!r}, file=sys.{stream})\nsys.exit({code})\n"
    )
    monkeypatch.setattr(result, "command", lambda: [sys.executable, str(program)])
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await show(app, pilot, done, "1")
        await screen._upload("me/merged", True).wait()
        await pilot.pause()
        assert said in [notice.message for notice in app._notifications]
    arguments = json.loads((tmp_path / "seen").read_text())
    assert arguments == ["push", str(done), "--repo", "me/merged", "--model", screen.model_folder.name, "--yes"]
