"""Data: file, data set or preset; the preview of what each model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from tests.tui.doubles import FakeProbe, screen_text, settle, type_text
from tmerge_tui.errors import DataError
from tmerge_tui.presets import read_preset
from tmerge_tui.recipe import make_recipe
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.draft import step_problems


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "two rivers meet"}\n')
    return str(path)


async def test_a_file_is_previewed_for_both_models(app: TmergeApp, probe: FakeProbe, models, text_file: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.set("source.model", models["source"])
        app.draft.set("target.model", models["target"])
        app.goto("data")
        await settle(pilot)
        assert "choose a text file or a data set" in screen_text(app)
        await type_text(pilot, text_file)
        await settle(pilot, 0.2)
        text = screen_text(app)
        for expected in ("1,500 to align on", "400 held out", "source 5 tokens", "target 4 tokens", "<s>two rivers"):
            assert expected in text
        asked = dict(probe.asked)["preview"]
        assert asked["models"] == {role: {"name": path, "folder": path} for role, path in models.items()}
        assert asked["calibration"]["path"] == text_file
        assert not step_problems(app.draft, "data")


async def test_f4_walks_through_the_fields(app: TmergeApp, text_file: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.set("calibration.path", text_file)
        app.goto("data")
        await settle(pilot, 0.2)
        await pilot.press("f4")
        assert app.draft.get("calibration.column") == "text"
        await pilot.press("f4")
        assert app.draft.get("calibration.column") == "label"


async def test_a_bad_file_says_why(app: TmergeApp, probe: FakeProbe, text_file: str) -> None:
    probe.fails["preview"] = DataError("line 3 is not JSON", "one JSON object a line", "mend the file")
    async with app.run_test(size=(100, 30)) as pilot:
        app.draft.set("calibration.path", text_file)
        app.goto("data")
        await settle(pilot, 0.2)
        text = screen_text(app)
        assert "✗ line 3 is not JSON" in text and "→ mend the file" in text


async def test_a_wrong_number_is_told_while_typing(app: TmergeApp, text_file: str) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        app.draft.set("calibration.path", text_file)
        app.goto("data")
        await settle(pilot)
        samples = app.screen.fields("samples")[0]
        samples.query_one(Input).focus()
        await pilot.press("ctrl+u", *"1")
        await settle(pilot)
        assert step_problems(app.draft, "data")
        assert samples.has_class("-wrong")
        await pilot.press(*"000")
        await settle(pilot)
        assert not samples.has_class("-wrong")
        assert app.draft.data()["calibration"]["samples"] == "1000"


async def test_a_preset_fills_data_alpha_and_models(app: TmergeApp) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        app.goto("data")
        await settle(pilot)
        app.screen.query_one("#origin").focus()
        await pilot.press("right", "right")
        assert app.screen.query_one("#preset").display
        app.screen.query_one("#preset").focus()
        await pilot.press("left")
        await settle(pilot)
        thai = read_preset("thai")
        assert app.draft.get("calibration.repo_id") == thai["calibration"]["repo_id"]
        assert app.draft.get("fusion.alpha") == [0.01]
        assert app.draft.get("target.model") == thai["target"]
        assert app.draft.get("calibration.path") is None
        assert app.screen.fields("column")[0].query_one(Input).value == "text"
        await pilot.press("left", "left")
        await settle(pilot)
        malay = {**read_preset("malay"), "output": "runs/x"}
        app.draft.set("output", "runs/x")
        assert app.draft.recipe() == make_recipe(malay), "nothing of the other preset is left"


async def test_a_preset_leaves_models_that_were_chosen(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.set("source.model", "org/mine")
        app.goto("data")
        await settle(pilot)
        app.screen.query_one("#origin").focus()
        await pilot.press("right", "right")
        assert "thai" in screen_text(app), "every preset is on the screen at its smallest"
        app.screen.query_one("#preset").focus()
        await pilot.press("left")
        await settle(pilot)
        assert app.draft.get("source.model") == "org/mine"
        assert app.draft.get("target.model") == read_preset("thai")["target"]
