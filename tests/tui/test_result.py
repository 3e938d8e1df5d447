"""The result: verdict, scores, plans, text, files, push."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.tui.doubles import FakeProbe, screen_text, settle
from tests.tui.fakes import heat, write_run
from tmerge_tui.errors import ModelError
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens import result
from tmerge_tui.tui.screens.result import ResultScreen
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
    async with app.run_test(size=(160, 50)) as pilot:
        await show(app, pilot, done, "1")
        text = screen_text(app)
        for expected in (
            "Fusion helped at alpha 0.05",
            "target alone",
            "placebo: permuted",
            "2.1695   -0.0011 [-0.0015, -0.0007] better",
            "Difference to the target over alpha",
            "● fused",
        ):
            assert expected in text, expected


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
