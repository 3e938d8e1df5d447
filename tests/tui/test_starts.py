"""The cards at the top of Method: they set what recipe/starts.py says, by keyboard and mouse, and lose nothing."""

from __future__ import annotations

import pytest

from tests.tui.doubles import FakeProbe, screen_text, settle
from tmerge_tui.recipe import make_recipe
from tmerge_tui.recipe.starts import BEST, OWNED, STARTS
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.draft import Draft
from tmerge_tui.tui.starting import differing, start_of, take_start, with_start
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.starts import Starts

BASE = {"source.model": "org/a", "target.model": "org/b", "calibration.path": "t.txt", "output": "runs/x"}
BARE = {"source": "org/a", "target": "org/b", "calibration": {"path": "t.txt"}, "output": "runs/x"}
SIZES = [(60, 20), (80, 24), (160, 50)]


def written(says: dict) -> dict:
    """The recipe's mapping with the options that a start says, without a draft."""
    nested: dict = {**BARE}
    for name, value in says.items():
        *path, leaf = name.split(".")
        at = nested
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = value
    return nested


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_a_draft_that_takes_a_start_is_the_recipe_that_says_it(start) -> None:
    taken = with_start(Draft(BASE), start.name)
    assert taken.recipe() == make_recipe(written(start.says))
    assert start_of(taken) == start.name and differing(taken, start.name) == []


def test_the_papers_is_the_bare_recipe_and_takes_the_others_back() -> None:
    draft = Draft({**BASE, "transport.epsilon": "0.2"})
    assert start_of(draft) == "paper"
    for name in ("everything", "best", "paper"):
        take_start(draft, name)
    assert draft.values == {**BASE, "transport.epsilon": "0.2"}


def test_a_setting_of_ones_own_is_no_start() -> None:
    draft = with_start(Draft(BASE), "best")
    draft.set("adaptation.epochs", "7")
    assert start_of(draft) == "" and differing(draft, "best") == ["adaptation.epochs"]
    draft.set("adaptation.epochs", "4")
    assert start_of(draft) == "best", "typed or taken, it is the same"
    assert set(BEST) <= set(OWNED)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
async def test_the_recommended_one_is_an_enter_away(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str], size: tuple[int, int]
) -> None:
    async with app.run_test(size=size) as pilot:
        for role, path in models.items():
            app.draft.set(f"{role}.model", path)
        app.goto("method")
        await settle(pilot)
        cards = app.screen.query_one(Starts)
        text = screen_text(app)
        assert app.focused is cards and text.count("3 min 07 s") >= 3 and "recommended" in text
        assert all(start.title in text for start in STARTS) and "Best small model ‹›" not in text
        await pilot.press("enter")
        await settle(pilot)
        assert start_of(app.draft) == "best" and cards.chosen == "best" and app.focused is cards
        assert [f for f in app.screen.query(OptionField) if f.option == "adaptation.teacher.tune"]
        asked = [args["recipe"] for call, args in probe.asked if call == "estimate"]
        assert {one.get("select", "recipe") for one in asked} == {"validation", "recipe"}, "each card with its own"
        count = len(asked)
        await pilot.press("right", "space")
        await settle(pilot)
        again = sum(call == "estimate" for call, _ in probe.asked)
        assert again == count + 1, "the cards' own times are the same whichever is taken"
        assert start_of(app.draft) == "paper" and set(app.draft.data()) == {"source", "target"}


async def test_a_click_takes_a_card(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        cards = app.screen.query_one(Starts)
        await pilot.click(Starts, offset=(cards.content_size.width - 10, 2))
        await settle(pilot)
        assert start_of(app.draft) == "everything"


async def test_own_settings_are_asked_for_before_they_go(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        take_start(app.draft, "best")
        app.draft.set("adaptation.epochs", "7")
        app.goto("method")
        await settle(pilot)
        assert app.screen.query_one(Starts).chosen == ""
        await pilot.press("enter")
        await pilot.pause()
        text = screen_text(app)
        assert "Replace your settings?" in text and "Set anew: training" in text
        await pilot.press("escape")
        await settle(pilot)
        assert app.draft.get("adaptation.epochs") == "7"
        await pilot.press("enter", "left", "enter")
        await settle(pilot)
        assert start_of(app.draft) == "best"


async def test_times_say_whether_scout_has_measured_them(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str]
) -> None:
    for role, path in models.items():
        app.draft.set(f"{role}.model", path)
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        assert "measured by scout" not in screen_text(app) and "f9 on Review measures them" in screen_text(app)
        probe.answers["estimate"] = {**probe.answers["estimate"], "scouted": True}
        app.goto("method")
        await settle(pilot)
        assert screen_text(app).count("measured by scout") == 2
