"""The whole way from Home to Result, by keyboard, with the real helper and a real worker on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from tests.tiny import make_model, make_text
from tests.tui.doubles import follows, screen_text, settle, type_text, until, wait_for
from tests.tui.test_helper import over
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.data import DataScreen
from tmerge_tui.tui.screens.method import MethodScreen
from tmerge_tui.tui.screens.result import ResultScreen
from tmerge_tui.tui.screens.review import ReviewScreen
from tmerge_tui.tui.screens.run import RunScreen
from tmerge_tui.tui.widgets.field import OptionField


async def put(pilot, name: str, text: str) -> None:
    field = next(f for f in pilot.app.screen.query(OptionField) if f.option == name)
    field.query_one(Input).focus()
    await pilot.press("ctrl+u")
    await type_text(pilot, text)


@pytest.mark.slow
async def test_from_home_to_result(tmp_path: Path) -> None:
    source = make_model(tmp_path / "source", "llama", layers=3)
    target = make_model(tmp_path / "target", "qwen2", seed=1)
    text = make_text(tmp_path / "text.txt", 60)
    app = TmergeApp()
    app.animation_level = "none"
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("n")
        await settle(pilot)
        for role, path in (("source", source), ("target", target)):
            app.screen.query_one(f"#{role}").query_one(Input).focus()
            await pilot.pause()
            await type_text(pilot, str(path))
            await pilot.press("enter")
        await wait_for(pilot, "✓ can be merged")
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, DataScreen)
        await type_text(pilot, str(text))
        await put(pilot, "calibration.samples", "30")
        await put(pilot, "calibration.holdout", "12")
        await wait_for(pilot, "30 to align on")
        assert "tokens" in screen_text(app)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, MethodScreen)
        await put(pilot, "fusion.k", "8")
        await put(pilot, "fusion.alpha", "0.1, 0.3")
        await wait_for(pilot, "memory")
        await pilot.press("ctrl+n")
        await wait_for(pilot, "it can run")
        assert isinstance(app.screen, ReviewScreen)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.follower.ended is not None)
        assert app.screen.phase == "finished", screen_text(app)
        assert app.screen.state.pairs > 0
        await until(pilot, lambda: not follows(pilot))
        await pilot.press("enter")
        await wait_for(pilot, "fused against")
        assert isinstance(app.screen, ResultScreen)
        await pilot.press("3")
        app.screen.query_one("#pick").focus()
        await pilot.pause()
        await pilot.press("down", "right", "right", "enter")
        await wait_for(pilot, "target 1 ← source 2")
        await settle(pilot, 0.3)
        assert app.screen.query_one("#plan").row_count > 0, app.screen.query_one("#plan").waiting
        await pilot.press("4")
        app.screen.query_one("#prompt").focus()
        await pilot.pause()
        await type_text(pilot, "In the beginning")
        await pilot.press("enter")
        await wait_for(pilot, "tokens in")
        await settle(pilot, 0.3)
        assert screen_text(app).count("tokens in") == 2
    await over(app.probe)
    for handle in app.started:
        handle.process.wait()
