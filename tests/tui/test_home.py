"""Home: what can be started, the runs of before and their states."""

from __future__ import annotations

import json
from pathlib import Path

from textual.widgets import DataTable, OptionList

from tests.tui.doubles import screen_text, settle
from tests.tui.fakes import write_run
from tmerge_tui.tui import storage
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.home import Home
from tmerge_tui.tui.screens.models import ModelsScreen
from tmerge_tui.tui.screens.result import ResultScreen
from tmerge_tui.tui.screens.review import ReviewScreen
from tmerge_tui.tui.screens.run import RunScreen
from tmerge_tui.worker import run_index


async def test_machine_and_start_are_shown(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        text = screen_text(app)
        for expected in ("New merge", "Run the demo", "Open a run", "Memory", "Disk here", "Hub", "Nothing here yet"):
            assert expected in text
        assert "Continue" not in text
        assert app.focused is app.screen.query_one(OptionList)


async def test_n_opens_the_wizard_and_escape_comes_back(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("n")
        await settle(pilot)
        assert isinstance(app.screen, ModelsScreen)
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, Home)


async def test_runs_are_listed_with_their_state_and_open(app: TmergeApp, tmp_path: Path) -> None:
    done = write_run(tmp_path / "done")
    dead = write_run(tmp_path / "dead", until="transport")
    run_index.remember(dead.path)
    run_index.remember(done.path)
    run_index.remember(tmp_path / "gone")  # its folder was removed: not listed
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        text = screen_text(app)
        assert "✓ finished" in text and "✗ crashed" in text and "helped -0.0011" in text and "done" in text, text
        table = app.screen.query_one(DataTable)
        assert table.row_count == 2
        table.focus()
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, ResultScreen)
        await pilot.press("escape")
        app.screen.query_one(DataTable).focus()
        await pilot.press("down", "enter")
        await settle(pilot)
        assert isinstance(app.screen, RunScreen)


async def test_delete_asks_and_removes_the_folder(app: TmergeApp, tmp_path: Path) -> None:
    run = write_run(tmp_path / "done")
    run_index.remember(run.path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.screen.query_one(DataTable).focus()
        await pilot.press("x")
        await pilot.pause()
        assert "Delete this run?" in screen_text(app)
        await pilot.press("escape")
        await settle(pilot)
        assert run.path.is_dir()
        await pilot.press("x")
        await pilot.pause()
        await pilot.press("shift+tab", "shift+tab", "enter")
        await settle(pilot)
        assert not run.path.exists()
        assert run_index.entries() == []


async def test_a_half_filled_draft_is_offered_and_continued(probe, tmp_path: Path) -> None:
    storage.write("draft", {"version": 1, "step": "review", "values": {"source.model": "org/big", "nonsense": 1}})
    app = TmergeApp(probe=probe)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "Continue" in screen_text(app) and "big → ?" in screen_text(app)
        await pilot.press("home", "enter")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert app.draft.get("source.model") == "org/big"


async def test_a_damaged_state_folder_is_no_obstacle(probe) -> None:
    storage.write("draft", {"values": 3})
    (storage.folder() / "runs.jsonl").write_text("{ torn\n[]\n3\n")
    (storage.folder() / "settings.json").write_text(json.dumps({"theme": "no such theme"}))
    app = TmergeApp(probe=probe)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, Home)


async def test_demo_opens_its_recipe(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("d")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert str(app.draft.get("source.model")).endswith("source-llama")
        assert app.draft.get("fusion.coupling") == "barycentric"


async def test_a_tall_home_says_what_came_of_the_run_under_the_cursor(app: TmergeApp, tmp_path: Path) -> None:
    run_index.remember(write_run(tmp_path / "done").path)
    run_index.remember(write_run(tmp_path / "dead", until="transport").path)
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        app.screen.query_one("#runs").focus()
        await pilot.press("down", "down")
        await settle(pilot)
        assert "Fusion helped at alpha 0.05, the best of 3" in screen_text(app)
        await pilot.press("up")
        await settle(pilot)
        assert "Fusion helped" not in screen_text(app) and "source-llama → target-qwen2" in screen_text(app)
