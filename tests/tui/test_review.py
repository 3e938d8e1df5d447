"""Review: the recipe as it will run, saved, copied, started."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input, Static

from tests.tui.doubles import FakeProbe, screen_text, settle, until
from tmerge_tui.recipe import load_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.review import ReviewScreen
from tmerge_tui.tui.screens.run import RunScreen
from tmerge_tui.worker import run_index, trust

CHOSEN = {"source.model": "org/a", "target.model": "org/b", "calibration.path": "text.txt", "fusion.alpha": "0.05, 0.1"}


async def test_the_recipe_is_shown_and_saved(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.values.update(CHOSEN)
        app.goto("review")
        await settle(pilot)
        text = screen_text(app)
        assert "runs/a-into-b" in text and "source:" in text and "model: org/a" in text
        await pilot.press("ctrl+s")
        await settle(pilot)
        recipe = load_recipe("recipe.yaml")
        assert recipe.fusion.alpha == (0.05, 0.1)
        assert recipe.output == str(Path("runs/a-into-b").absolute())


async def test_saving_over_a_file_asks(app: TmergeApp) -> None:
    Path("recipe.yaml").write_text("mine")
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.values.update(CHOSEN)
        app.goto("review")
        await settle(pilot)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert "recipe.yaml exists" in screen_text(app)
        await pilot.press("escape")
        await settle(pilot)
        assert Path("recipe.yaml").read_text() == "mine"


async def test_problems_of_every_step_block_the_start(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.values.update({**CHOSEN, "fusion.k": "many"})
        app.goto("review")
        await settle(pilot)
        assert "✗ fusion.k: expected a whole number" in screen_text(app)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen)
        assert not Path("runs").exists()


async def test_the_command_is_copied(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.values.update(CHOSEN)
        app.goto("review")
        await settle(pilot)
        app.screen.query_one("#recipe-path", Input).value = "my recipe.yaml"
        await pilot.press("f7")
        await pilot.pause()
        assert app.clipboard == "tmerge --batch 'my recipe.yaml'"


async def test_starting_writes_the_recipe_and_follows_the_run(app: TmergeApp, monkeypatch) -> None:
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.tui.fakes:play")
    rung: list[str] = []
    monkeypatch.setattr(TmergeApp, "bell", lambda self: rung.append("bell"))
    async with app.run_test(size=(120, 40)) as pilot:
        app.draft.values.update(CHOSEN)
        app.goto("review")
        await settle(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.phase == "finished")
        await settle(pilot)
        run = RunDir.open("runs/a-into-b")
        assert load_recipe(run.recipe).source.model == "org/a"
        assert [entry.path for entry in run_index.entries()] == [run.path.absolute()]
        assert not app.draft, "the draft has become a run"
        await until(pilot, lambda: rung)
        app.show_run(run.path)
        await settle(pilot)
        assert rung == ["bell"], "once, when it ends, and not when it is looked at again"


async def test_a_folder_that_is_not_ours_is_left_alone(app: TmergeApp) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years")
    async with app.run_test(size=(120, 40)) as pilot:
        app.draft.values.update({**CHOSEN, "output": "mine"})
        app.goto("review")
        await settle(pilot)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen)
        await until(pilot, lambda: len(app._notifications))
        assert any("is not a run of tmerge" in notice.message for notice in app._notifications)
        assert sorted(p.name for p in Path("mine").iterdir()) == ["thesis.txt"]


async def test_code_that_comes_with_a_model_runs_only_when_it_is_allowed(app: TmergeApp, probe: FakeProbe) -> None:
    def checked() -> bool:
        return any(call == "check" for call, _ in probe.asked)

    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.values.update({**CHOSEN, "source.trust_remote_code": True})
        app.goto("review")
        await until(pilot, lambda: "Run Python code that comes with a model?" in screen_text(app))
        assert "org/a" in screen_text(app) and not checked()
        await pilot.press("escape")
        await settle(pilot)
        assert not checked() and "not allowed to run" in str(app.screen.query_one("#checked", Static).render())
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "Run Python code that comes with a model?" in screen_text(app))
        await pilot.click("#answer-allow")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert trust.untrusted(app.draft.recipe() if app.draft else load_recipe("runs/a-into-b/recipe.yaml")) == ()
