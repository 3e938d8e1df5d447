"""Scout on Review: what it finds, how it is stopped, and that Review and Method then say what was measured."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from textual.widgets import Button, Static

from tests.tui.doubles import SCOUTED, FakeProbe, screen_text, settle, until
from tmerge_tui.errors import CheckError, DataError
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.review import ReviewScreen
from tmerge_tui.tui.screens.scout import ScoutScreen

SIZES = [(60, 20), (80, 24), (160, 50)]


async def open_review(app: TmergeApp, pilot, models: dict[str, str]) -> None:
    Path("text.txt").write_text("two rivers meet\n" * 9)
    for role, path in models.items():
        app.draft.set(f"{role}.model", path)
    app.draft.set("calibration.path", "text.txt")
    app.goto("review")
    await settle(pilot)


def found(app: TmergeApp) -> str:
    """All that the dialog says, seen or not."""
    return " ".join(str(app.screen.query_one("#found", Static).render()).split())


def joined(text: str) -> str:
    """Without the borders and breaks of a dialog."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
async def test_headroom_sentence_and_times_are_shown_and_kept(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str], size: tuple[int, int]
) -> None:
    async with app.run_test(size=size) as pilot:
        await open_review(app, pilot, models)
        assert "f9 Scout" in screen_text(app) and "measured by scout" not in screen_text(app)
        probe.answers["estimate"] = {**probe.answers["estimate"], "scouted": True}
        await pilot.press("f9")
        await settle(pilot)
        assert isinstance(app.screen, ScoutScreen)
        assert "Scout: is there anything to carry over?" in screen_text(app) and "Close" in screen_text(app)
        assert "✓ The source is better" in screen_text(app)
        seen = found(app)
        for said in (
            "there is something to carry over",
            "-0.4149 -0.4532 to -0.3780",
            "91% of the vocabulary shared",
            "fine-tuned (SFT) (3 seeds)",
            "1 min 11 s",
            "about 1 min 31 s",
        ):
            assert said in seen, (said, seen)
        first = screen_text(app)
        await pilot.press("pagedown")
        await pilot.pause()
        assert size[1] > 40 or screen_text(app) != first, "what has no room is a key away"
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen)
        text = joined(screen_text(app))
        assert "measured by scout" in text and "The source is better on this text by 0.4149" in text
        app.draft.set("calibration.samples", "7")
        app.goto("review")
        await settle(pilot)
        assert "is better on this text" not in screen_text(app), "it was another text"


async def test_it_shows_progress_and_stops_when_it_is_told_to(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str]
) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await open_review(app, pilot, models)
        probe.waits = asyncio.Event()
        await pilot.press("f9")
        await until(pilot, lambda: "Trying target-qwen2" in screen_text(app))
        text = screen_text(app)
        assert "Stop" in text and str(app.screen.query_one("#close", Button).label) == "Stop"
        probe.waits = None
        await pilot.press("enter")  # the button has the focus
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen) and app.scouted is None
        assert not [worker for worker in app.workers if worker.is_running and worker.group == "scout"]


async def test_what_goes_wrong_is_said_and_nothing_is_lost(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str]
) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await open_review(app, pilot, models)
        before = dict(app.draft.values)
        probe.fails["scout"] = DataError("text.txt: 3 distinct samples", "at least 4", "give a file with more text")
        await pilot.press("f9")
        await settle(pilot)
        text = joined(screen_text(app))
        assert "✗ text.txt: 3 distinct samples" in text and "next: give a file with more text" in text
        await pilot.press("f9")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen) and app.draft.values == before


async def test_weights_on_the_hub_are_fetched_only_when_asked(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str]
) -> None:
    pending = {"pending": [{"name": "org/big", "bytes": 16_000_000_000}], "models": None, "headroom": None, "arms": []}
    probe.answers["scout"] = {**SCOUTED, **pending, "outcome": "unknown", "verdict": "The models have not been run."}
    async with app.run_test(size=(80, 24)) as pilot:
        await open_review(app, pilot, models)
        await pilot.press("f9")
        await settle(pilot)
        assert "org/big: 16 GB" in screen_text(app) and app.screen.query_one("#fetch").display
        probe.answers["scout"] = SCOUTED
        await pilot.click("#fetch")
        await settle(pilot)
        assert [args["download"] for call, args in probe.asked if call == "scout"] == [False, True]
        assert "there is something to carry over" in found(app)


async def test_a_recipe_with_problems_is_not_tried(app: TmergeApp, probe: FakeProbe) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto("review")
        await settle(pilot)
        await pilot.press("f9")
        await pilot.pause()
        assert isinstance(app.screen, ReviewScreen) and "scout" not in [call for call, _ in probe.asked]


def test_a_list_of_problems_comes_through_as_one_error() -> None:
    """What the helper sends of a CheckError has all of them in `found`."""
    assert "a: 1" in CheckError(["a: 1", "b: 2"], "correct them").found
