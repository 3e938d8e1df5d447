"""Data: file, data set or preset; the preview of what each model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from tests.tui.doubles import FakeProbe, screen_text, settle, type_text
from tmerge_tui.errors import DataError
from tmerge_tui.recipe import make_recipe
from tmerge_tui.recipe.presets import read_preset
from tmerge_tui.tui import catalog
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.draft import step_problems
from tmerge_tui.tui.screens.data import DataScreen
from tmerge_tui.tui.widgets import finder
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.finder import Finder
from tmerge_tui.tui.widgets.toggles import OneOf


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


FOUND = [
    catalog.Found("org/brook-verses", "hub", downloads=52_000, licence="cc0-1.0", modified="2026-01-02"),
    catalog.Found("org/brook-letters-of-the-nineteenth-century", "hub", downloads=12, gated=True),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub with two data sets; what it is asked."""
    queries: list[str] = []

    def search(query: str, limit: int = 20) -> list[catalog.Found]:
        queries.append(query)
        return [one for one in FOUND if query in one.name]

    monkeypatch.setattr(catalog, "search_datasets", search)
    monkeypatch.setattr(finder, "DEBOUNCE", 1.0)  # a busy machine may take long between two keys
    return queries


async def open_hub(app: TmergeApp, pilot) -> DataScreen:
    """The screen with the input of the id in focus."""
    app.goto("data")
    await settle(pilot)
    app.screen.query_one("#origin").focus()
    await pilot.press("right", "tab")
    await settle(pilot)
    assert isinstance(app.screen, DataScreen) and app.focused is app.screen.repo_id
    return app.screen


async def test_a_data_set_is_found_by_typing(app: TmergeApp, probe: FakeProbe, asked: list[str]) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_hub(app, pilot)
        assert "Type a few letters to search the" in screen_text(app)
        for name, value in (("column", "verse"), ("config_name", "old"), ("split", "test")):
            app.change(f"calibration.{name}", value)
        await pilot.press(*"brook")
        await settle(pilot, 0.1)
        assert asked == ["brook"], "once, when typing pauses"
        text = screen_text(app)
        assert "↓52 k  cc0-1.0  2026-01" in text and "↓12  gated" in text and "Data sets on the Hub" in text, text
        assert "letters-of-the-nineteenth-century" in text, "a long name keeps its end"
        assert not [call for call, _ in probe.asked if call == "preview"], "half an id is not read"
        await pilot.press("down", "down", "enter")
        await settle(pilot, 0.2)
        assert not screen.listing and app.focused is screen.repo_id
        chosen = app.draft.data()["calibration"]
        assert chosen == {"repo_id": FOUND[1].name}, "nothing of the data set before is left"
        assert screen.repo_id.value == FOUND[1].name
        assert dict(probe.asked)["preview"]["calibration"]["repo_id"] == FOUND[1].name
        assert "1,500 to align on" in screen_text(app)


async def test_a_data_set_is_taken_with_the_mouse(app: TmergeApp, asked: list[str]) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await open_hub(app, pilot)
        await pilot.press(*"brook")
        await settle(pilot, 0.1)
        line = next(line for line in screen_text(app).splitlines() if "century" in line)
        assert "↓12  gated" in line, "one line where there is room"
        await pilot.click(Finder, offset=(6, 1))
        await settle(pilot, 0.2)
        assert app.draft.get("calibration.repo_id") == FOUND[1].name and not screen.listing


async def test_escape_closes_the_list_and_keeps_what_was_typed(app: TmergeApp, asked: list[str]) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_hub(app, pilot)
        await pilot.press(*"brook")
        await settle(pilot, 0.1)
        await pilot.press("down", "escape")
        await settle(pilot)
        assert app.screen is screen and not screen.listing and app.focused is screen.repo_id
        assert app.draft.get("calibration.repo_id") == "brook"
        await pilot.press("down")
        await settle(pilot, 0.1)
        assert screen.listing and len(asked) == 2, "down opens it again"
        await pilot.press("down", "tab")
        await settle(pilot)
        assert not screen.listing, "and who goes on leaves it"
        await pilot.press("escape")
        await settle(pilot)
        assert app.screen is not screen


async def test_offline_an_id_can_be_typed_all_the_same(app: TmergeApp, probe: FakeProbe) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_hub(app, pilot)
        await type_text(pilot, "org/verses")
        await settle(pilot, 0.1)
        said = screen.finder.note
        assert said.startswith("offline: the Hub cannot be reached") and "an id can be typed all the same" in said
        assert "offline: the Hub cannot" in screen_text(app)
        probe.fails["preview"] = DataError("the Hub cannot be reached (no network in tests)", "", "try again later")
        await pilot.press("enter")
        await settle(pilot, 0.2)
        assert app.draft.get("calibration.repo_id") == "org/verses" and not step_problems(app.draft, "data")
        assert "✗ the Hub cannot be reached" in screen_text(app)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (DataError("too many requests", "", "wait a minute"), "too many requests"),
        ([], "no data set on the Hub has 'x'"),
    ],
)
async def test_a_search_without_result_says_why(app: TmergeApp, monkeypatch, answer, said: str) -> None:
    def search(query: str, limit: int = 20) -> list[catalog.Found]:
        if isinstance(answer, DataError):
            raise answer
        return answer

    monkeypatch.setattr(catalog, "search_datasets", search)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_hub(app, pilot)
        await pilot.press("x")
        await settle(pilot, 0.1)
        assert screen.finder.note.startswith(said)
        await pilot.press("down", "enter")
        await settle(pilot)
        assert app.draft.get("calibration.repo_id") == "x", "a remark cannot be taken"


async def test_f4_takes_a_field_of_a_file_that_cannot_be_read_as_it_is(app: TmergeApp, probe, text_file: str) -> None:
    probe.fails["preview"] = DataError("fields id, teks, tajuk", "one to read", "set calibration.column to it")
    probe.answers["fields"] = ["id", "teks", "tajuk"]
    async with app.run_test(size=(100, 30)) as pilot:
        app.draft.set("calibration.path", text_file)
        app.goto("data")
        await settle(pilot, 0.2)
        text = screen_text(app)
        assert "its fields: id, teks, tajuk" in text and "→ set column to it" in text
        await pilot.press("f4", "f4")
        assert app.draft.get("calibration.column") == "teks"


async def test_the_meaning_of_the_field_in_focus_is_shown_and_nothing_moves(app: TmergeApp, text_file: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.set("calibration.path", text_file)
        app.goto("data")
        await settle(pilot, 0.2)
        rows = [field.region.y for field in app.screen.query(OptionField)]
        app.screen.fields("pooling")[0].query_one(OneOf).focus()
        await settle(pilot)
        assert "one row per sample (the paper)" in screen_text(app)
        samples = app.screen.fields("samples")[0]
        samples.query_one(Input).focus()
        await pilot.press("ctrl+u", *"1")
        await settle(pilot)
        assert samples.wrong and [field.region.y for field in app.screen.query(OptionField)] == rows


async def test_the_path_comes_back_after_a_look_at_the_hub(app: TmergeApp, text_file: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.set("calibration.path", text_file)
        app.goto("data")
        await settle(pilot, 0.2)
        app.screen.query_one("#origin").focus()
        await pilot.press("right", "left")
        await settle(pilot)
        assert app.draft.get("calibration.path") == text_file


async def test_a_preset_left_on_data_takes_its_settings_along(app: TmergeApp) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        app.draft.set("fusion.k", "64")
        app.goto("data")
        await settle(pilot)
        app.screen.query_one("#origin").focus()
        await pilot.press("right", "right")
        app.screen.query_one("#preset").focus()
        await pilot.press("left")
        await settle(pilot)
        said = next(notice.message for notice in app._notifications)
        assert "training" in said and "tasks" in said and "k" in said
        assert app.draft.get("adaptation")
        app.screen.query_one("#origin").focus()
        await pilot.press("left", "left")
        await settle(pilot)
        assert app.draft.values == {"fusion.k": "64"}
