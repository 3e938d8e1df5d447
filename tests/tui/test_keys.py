"""Keys that work everywhere, and what the screen does when it has no room or no colour."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.tui.doubles import FakeProbe, screen_text, settle
from tests.tui.fakes import write_run
from tmerge_tui.tui import storage
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.help import KeysScreen
from tmerge_tui.tui.screens.home import Home


@pytest.mark.parametrize("step", ("models", "review"))
async def test_help_lists_the_keys_of_a_step(app: TmergeApp, step: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto(step)
        await settle(pilot)
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(app.screen, KeysScreen)
        text = screen_text(app)
        assert "Next" in text or "Start" in text
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, KeysScreen)


async def test_back_and_forward_keep_what_was_typed(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.values.update({"source.model": "/a", "target.model": "/b", "calibration.path": "t.txt"})
        app.goto("review")
        await settle(pilot)
        for step in ("method", "data", "models"):
            await pilot.press("escape")
            await settle(pilot)
            assert app.screen.step == step
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, Home)
        assert app.draft.values["calibration.path"] == "t.txt"


async def left(app: TmergeApp) -> None:
    """The application is told to leave."""
    while app.return_value is None:
        await asyncio.sleep(0.005)


async def test_ctrl_q_quits_from_an_input_and_the_draft_is_restored(app: TmergeApp, probe: FakeProbe) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto("models")
        await settle(pilot)
        await pilot.press(*"org/qq", "tab")
        await settle(pilot)
        await pilot.press("ctrl+q")
        await left(app)
    assert app.return_value == 0
    again = TmergeApp(probe=probe)
    assert again.draft.get("source.model") == "org/qq"


async def test_ctrl_c_asks_for_a_second_one(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert app.is_running
        await pilot.press("ctrl+c")
        await left(app)
    assert app.return_value == 0


async def test_the_palette_reaches_every_step(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        titles = [command.title for command in app.get_system_commands(app.screen)]
        for expected in ("Home", "Wizard 3: Method", "New merge", "Theme"):
            assert expected in titles
        await pilot.press("ctrl+p")
        await pilot.pause()
        await pilot.press(*"wizard 2: data", "enter")
        await settle(pilot)
        assert app.screen.step == "data"


@pytest.mark.parametrize("step", ("models", "method"))
async def test_focus_is_always_somewhere_and_tab_reaches_the_buttons(app: TmergeApp, step: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto(step)
        await settle(pilot)
        seen = []
        for _ in range(60):
            assert app.focused is not None
            seen.append(app.focused.id)
            if app.focused.id == "next":
                break
            await pilot.press("tab")
            await pilot.pause()
        assert "next" in seen


@pytest.mark.parametrize(("size", "small"), [((59, 20), True), ((60, 19), True), ((60, 20), False)])
async def test_too_small(app: TmergeApp, size: tuple[int, int], small: bool) -> None:
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert ("This terminal is too small" in screen_text(app)) == small


async def test_no_colour_draws_maps_with_ink(probe: FakeProbe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    run = write_run(tmp_path / "done")
    app = TmergeApp(probe=probe)
    app.animation_level = "none"
    async with app.run_test(size=(120, 40)) as pilot:
        app.show_result(run.path)
        await settle(pilot)
        await pilot.press("2")
        await settle(pilot)
        text = screen_text(app)
        assert "▀" not in text and "@@@" in text


async def test_a_chosen_theme_is_kept(app: TmergeApp, probe: FakeProbe) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.theme = "tmerge-light"
        await settle(pilot)
    assert storage.read("settings") == {"theme": "tmerge-light"}
    assert TmergeApp(probe=probe).theme == "tmerge-light"


async def test_a_picture_of_the_screen_is_saved_here_or_says_why_not(app: TmergeApp, monkeypatch) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.action_picture()
        (picture,) = Path.cwd().glob("tmerge-*.svg")
        assert "<svg" in picture.read_text()
        picture.unlink()
        monkeypatch.setattr(Path, "write_text", lambda *given, **more: (_ for _ in ()).throw(OSError(13, "not yours")))
        app.action_picture()
        await pilot.pause()
        assert any("not yours" in notice.message for notice in app._notifications)
