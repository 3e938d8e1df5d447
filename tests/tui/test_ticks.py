"""A tick stands only for what was checked as it is; a preset can be left again; an idle Home paints nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.tui.doubles import FakeProbe, screen_text, settle
from tests.tui.fakes import write_run
from tests.tui.test_traps import open_step
from tmerge_tui.errors import DataError
from tmerge_tui.recipe.presets import read_preset
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.draft import Draft
from tmerge_tui.tui.screens.home import Home
from tmerge_tui.tui.screens.presets import PresetsScreen
from tmerge_tui.tui.widgets.runs_table import RunsTable
from tmerge_tui.worker import run_index


async def test_nothing_is_ticked_before_it_was_checked(app: TmergeApp) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        app.goto("review")
        await settle(pilot)
        assert "✓" not in screen_text(app).splitlines()[1], "nothing has been chosen"


async def test_models_that_cannot_be_resolved_are_crossed_and_next_says_so(app: TmergeApp) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        app.draft.set("source.model", "org/nowhere")
        app.draft.set("target.model", "xyzzy")
        app.goto("models")
        await settle(pilot, 0.2)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert "✗ Models" in screen_text(app).splitlines()[1]
        assert any("cannot be used" in notice.message for notice in app._notifications)


async def test_checked_steps_are_ticked_until_they_change(app: TmergeApp, models: dict[str, str]) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        await open_step(app, pilot, "models", models)
        app.goto("data")
        await settle(pilot, 0.2)
        assert "✓ Models" in screen_text(app).splitlines()[1]
        app.change("source.model", "org/other")
        app.goto("method")
        await settle(pilot, 0.2)
        line = screen_text(app).splitlines()[1]
        assert "○ Models" in line and "✓ Data" in line


async def test_a_file_that_cannot_be_read_is_no_tick(app: TmergeApp, probe: FakeProbe, models: dict[str, str]) -> None:
    probe.fails["preview"] = DataError("t.txt is not UTF-8", "UTF-8", "convert it")
    async with app.run_test(size=(100, 30)) as pilot:
        await open_step(app, pilot, "data", models)
        await settle(pilot, 0.2)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert "✗ Data" in screen_text(app).splitlines()[1]
        assert any("not UTF-8" in notice.message for notice in app._notifications)


async def test_a_review_that_found_problems_is_crossed(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str]
) -> None:
    probe.answers["check"] = {"problems": ["fusion.k: 128 neurons asked for"], "warnings": []}
    async with app.run_test(size=(100, 30)) as pilot:
        await open_step(app, pilot, "review", models)
        assert app.draft.standing("review") == "refused"
        app.goto("method")
        await settle(pilot)
        assert "✗ Review" in screen_text(app).splitlines()[1]


async def test_a_cleared_model_takes_the_verdict_back(app: TmergeApp, models: dict[str, str]) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await open_step(app, pilot, "models", models)
        assert "✓ can be merged" in screen_text(app)
        app.screen.query_one("#target").input.focus()
        await pilot.press("ctrl+u")
        await pilot.pause()
        assert "can be merged" not in screen_text(app)


async def test_review_says_in_words_who_how_and_how_long(app: TmergeApp, probe: FakeProbe, models) -> None:
    probe.answers["estimate"] |= {"seconds": 7300.0, "notes": ["memory: 35 GB of weights"]}
    async with app.run_test(size=(160, 50)) as pilot:
        await open_step(app, pilot, "review", models)
        text = screen_text(app)
        for said in ("source-llama into target-qwen2", "about 2 h 01 min on cpu", "streamed: slower", "only shrinks"):
            assert said in text, text


async def test_what_does_not_fit_the_models_is_said_on_method(app: TmergeApp, probe: FakeProbe, models) -> None:
    wrong = "fusion.k: 16 neurons asked for, but q has 8 rows; use k: 8 or less"
    probe.answers["estimate"] |= {"problems": [wrong]}
    async with app.run_test(size=(100, 44)) as pilot:
        await open_step(app, pilot, "method", models)
        await settle(pilot, 0.3)
        assert "✗ 16 neurons asked for" in screen_text(app)
        app.goto("data")
        await settle(pilot)
        assert "✗ Method" in screen_text(app).splitlines()[1]


def test_a_preset_is_taken_back_whole() -> None:
    draft = Draft({"source.model": "org/mine", "calibration.path": "t.txt", "fusion.k": "16"})
    before = dict(draft.values)
    changed = draft.take_preset("malay", ("target",))
    assert draft.get("adaptation") and draft.get("evaluation.tasks") and draft.get("calibration.path") is None
    assert draft.get("source.model") == "org/mine" and "fusion.k" in changed
    again = Draft.load(draft.dump())
    for one in (draft, again):
        assert set(one.leave_preset()) == set(changed)
        assert one.values == before and not one.preset


def test_what_was_changed_in_a_preset_is_kept_when_it_is_left() -> None:
    draft = Draft()
    draft.take_preset("thai", ())
    draft.set("fusion.alpha", "0.3")
    back = draft.leave_preset()
    assert "fusion.alpha" not in back and draft.get("fusion.alpha") == "0.3"
    assert draft.get("calibration.repo_id") is None


async def test_presets_are_on_home_with_what_they_set(app: TmergeApp) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        assert "From a preset" in screen_text(app)
        await pilot.press("p")
        await pilot.pause()
        assert isinstance(app.screen, PresetsScreen)
        await pilot.press("down", "down", "down")
        await pilot.pause()
        text = screen_text(app)
        assert "mesolitica/Malaysian-SFT" in text and "training afterwards" in text and "piqa" in text
        await pilot.press("enter")
        await settle(pilot)
        assert app.draft.preset == "malay" and app.draft.get("source.model") == read_preset("malay")["source"]


async def test_home_is_silent_while_nothing_changes(app: TmergeApp, tmp_path: Path, monkeypatch) -> None:
    """A second look at the same runs touches no cell, and below another screen there is no look at all."""
    run_index.remember(write_run(tmp_path / "done").path)
    async with app.run_test(size=(160, 50)) as pilot:
        await settle(pilot)
        home = app.screen
        assert isinstance(home, Home)
        table = home.query_one(RunsTable)
        touched: list[str] = []
        for name in ("clear", "add_row", "update_cell"):
            monkeypatch.setattr(table, name, lambda *given, name=name, **more: touched.append(name))
        home._show_runs(table.runs)
        home._show_runs([*table.runs])
        assert touched == []
        home._show_runs([replace(table.runs[0], state="running")])
        assert touched == ["update_cell"], "only what changed"
        monkeypatch.undo()
        app.goto("models")
        await settle(pilot)
        assert not home._timer._active.is_set(), "paused"
        await pilot.press("escape")
        await settle(pilot)
        assert home._timer._active.is_set()


async def test_home_filters_sorts_and_compares(app: TmergeApp, tmp_path: Path) -> None:
    for name in ("first", "second"):
        run_index.remember(write_run(tmp_path / name).path)
    dead = write_run(tmp_path / "third", until="transport")
    run_index.remember(dead.path)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        table = app.screen.query_one(RunsTable)
        assert [run.path.name for run in table.listed()] == ["third", "second", "first"]
        await pilot.press("slash", *"helped")
        await pilot.pause()
        assert {run.path.name for run in table.listed()} == {"first", "second"} and table.row_count == 2
        await pilot.press("escape")
        await pilot.pause()
        assert table.row_count == 3
        await pilot.press("s")
        assert table.order == "best" and table.listed()[-1].path.name == "third"
        table.focus()
        await pilot.press("c", "down", "c")
        await settle(pilot)
        text = screen_text(app)
        assert "Settings that differ" in text and "Result" in text, text


async def test_a_finished_run_stays_one_whatever_is_tried_on_it_later(app: TmergeApp, tmp_path: Path) -> None:
    from tmerge_tui.events import RunFailed, encode

    run = write_run(tmp_path / "done")
    with open(run.events, "a") as file:
        file.write(encode(RunFailed("DataError", "piqa cannot be loaded", "", "", 1), 999, 1.0) + "\n")
    run_index.remember(run.path)
    async with app.run_test(size=(160, 50)) as pilot:
        await settle(pilot)
        assert "✓ finished !" in screen_text(app) and "helped" in screen_text(app)
        app.screen.query_one(RunsTable).focus()
        await pilot.press("enter")
        await settle(pilot)
        assert "Fusion helped" in screen_text(app)
