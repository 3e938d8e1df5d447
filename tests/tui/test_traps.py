"""No key does harm: from every place that takes the focus, every printable key and every F-key.

In the wizard each place gets every F-key and a third of the letters, the next place the next third; with TMERGE_MOMENTS
in the environment, as in `make moments`, every place gets all of them.
"""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button

from tests.tui.doubles import screen_text, settle
from tests.tui.fakes import write_run
from tmerge_tui.tui import catalog
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.ask import Ask
from tmerge_tui.tui.screens.home import Home
from tmerge_tui.tui.screens.method import MethodScreen
from tmerge_tui.tui.screens.models import ModelsScreen
from tmerge_tui.tui.widgets.finder import Finder
from tmerge_tui.worker import run_index

NAMES = {" ": "space", "?": "question_mark", "/": "slash", "_": "underscore", "-": "minus", "+": "plus"}
LETTERS = [NAMES.get(c, c) for c in string.printable.strip() + " "]
F_KEYS = [f"f{number}" for number in range(1, 13)]
KEYS = [*LETTERS, *F_KEYS]
THIRDS = 1 if "TMERGE_MOMENTS" in os.environ else 3
CHOSEN = {"calibration.path": "text.txt", "fusion.k": "16", "transport.epsilon": "0.2", "output": "runs/x"}
STEPS = ("models", "data", "method", "review")


async def open_step(app: TmergeApp, pilot: Pilot, step: str, models: dict[str, str]) -> dict[str, object]:
    """The step with a draft that is complete; its values."""
    Path("text.txt").write_text("two rivers meet\n" * 9)
    for role, path in models.items():
        app.draft.set(f"{role}.model", path)
    for name, value in CHOSEN.items():
        app.draft.set(name, value)
    app.goto(step)
    await settle(pilot)
    return dict(app.draft.values)


def places(app: TmergeApp) -> list[Widget]:
    """What tab reaches, one of each kind: all inputs of a screen take letters alike, and so do its rows of choices."""
    kinds = {
        (type(widget), widget.id if isinstance(widget, Button) else ""): widget for widget in app.screen.focus_chain
    }
    return list(kinds.values())


@pytest.mark.parametrize("step", STEPS)
async def test_no_key_of_the_wizard_quits_resets_or_loses(app: TmergeApp, models: dict[str, str], step: str) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        before = await open_step(app, pilot, step, models)
        for number in range(len(places(app))):
            widget = places(app)[number]
            changed = getattr(getattr(widget, "parent", None), "parent", None)
            own = {getattr(changed, "option", ""), f"{getattr(changed, 'role', '')}.model"}
            for key in (*LETTERS[number % THIRDS :: THIRDS], *F_KEYS):
                if app.focused is not widget:
                    widget.focus()
                await pilot.press(key)
                assert app.is_running, f"{key} in {widget} quit"
                while isinstance(app.screen, ModalScreen):
                    await pilot.press("escape")
                    await pilot.pause()
                assert getattr(app.screen, "step", "") == step, f"{key} in {widget} left the step"
                if key == "f5":  # the expert view is composed anew: the same place in it
                    await pilot.press("f5")
                    await settle(pilot, 0.01)
                    widget = places(app)[number]
                if key == "f3":
                    await pilot.press("f3")  # swapped back
            lost = {name for name, value in before.items() if app.draft.values.get(name) != value} - own
            assert lost <= {"calibration.column"}, f"{lost} changed from {widget}"
            before = dict(app.draft.values)


async def test_no_key_of_home_does_harm(app: TmergeApp, models: dict[str, str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "done")
    run_index.remember(run.path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        for role, path in models.items():
            app.draft.set(f"{role}.model", path)
        before = dict(app.draft.values)
        for widget in places(app):
            for key in KEYS:
                if key == "q":  # the one place where it quits
                    continue
                widget.focus()
                await pilot.press(key)
                await pilot.pause()
                for _ in range(3):
                    if isinstance(app.screen, Home) and not app.screen.query_one("#filter").display:
                        break
                    await pilot.press("escape")
                    await pilot.pause()
                assert app.is_running and isinstance(app.screen, Home), f"{key} in {widget}"
                assert app.draft.values == before and run.path.is_dir(), f"{key} in {widget}"


async def test_a_list_without_entries_takes_no_focus_and_q_is_a_letter(app: TmergeApp) -> None:
    """Offline: a name typed in each field, with tab and down between."""
    async with app.run_test(size=(100, 30)) as pilot:
        app.goto("models")
        await settle(pilot)
        await pilot.press(*"llama")
        await settle(pilot, 0.2)
        assert "offline" in screen_text(app)
        await pilot.press("down", "tab", *"qwen")
        await settle(pilot, 0.2)
        assert app.is_running and isinstance(app.screen, ModelsScreen)
        assert app.draft.get("source.model") == "llama" and app.draft.get("target.model") == "qwen"


async def test_letters_typed_in_a_list_go_to_its_field(app: TmergeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    here = catalog.Found("org/quiet-llama", "cache", None, 5_000_000)
    monkeypatch.setattr(catalog, "cached", lambda query="": [here] if query in here.name else [])
    async with app.run_test(size=(100, 30)) as pilot:
        app.goto("models")
        await settle(pilot)
        card = app.screen.query_one("#source")
        assert "org/quiet-llama" in screen_text(app), "what is cached is there before anything is typed"
        await pilot.press("down")
        assert isinstance(app.focused, Finder)
        await pilot.press("q", "u")
        assert app.is_running and app.focused is card.input and card.input.value == "qu"
        await settle(pilot, 0.1)
        await pilot.press("down", "backspace")
        assert card.input.value == "q"
        await settle(pilot, 0.1)
        await pilot.press("down", "up")
        assert app.focused is card.input, "up leads back out of the list"


@pytest.mark.parametrize("step", STEPS)
async def test_q_asks_inside_the_wizard(app: TmergeApp, models: dict[str, str], step: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await open_step(app, pilot, step, models)
        app.screen.query_one("#next").focus()
        await pilot.press("q")
        await pilot.pause()
        assert isinstance(app.screen, Ask) and app.is_running
        await pilot.press("enter")  # the harmless answer has the focus
        await pilot.pause()
        assert app.is_running and app.screen.step == step


async def test_a_key_means_one_thing(app: TmergeApp, models: dict[str, str]) -> None:
    """Over all steps, an F-key or ctrl key has one description, and F1 is help on each of them."""
    meanings: dict[str, set[str]] = {}
    async with app.run_test(size=(80, 24)) as pilot:
        for step in STEPS:
            await open_step(app, pilot, step, models)
            for key, active in app.screen.active_bindings.items():
                if key.startswith("f") and key[1:].isdigit():
                    meanings.setdefault(key, set()).add(active.binding.description)
            assert "f1 Help" in screen_text(app)
    assert {key: len(said) for key, said in meanings.items()} == dict.fromkeys(meanings, 1), meanings


async def test_defaults_ask_and_say_what_they_take_back(app: TmergeApp, models: dict[str, str]) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await open_step(app, pilot, "method", models)
        await pilot.press("f6")
        await pilot.pause()
        text = screen_text(app)
        assert "Take back 2 settings?" in text and "k, epsilon" in text
        await pilot.press("escape")
        await pilot.pause()
        assert app.draft.get("fusion.k") == "16"
        await pilot.press("f6", "left", "enter")
        await settle(pilot)
        assert isinstance(app.screen, MethodScreen) and app.draft.get("fusion.k") == 128
        assert app.draft.get("calibration.path") == "text.txt", "only this screen's"


async def test_the_demo_asks_before_it_replaces_a_half_filled_merge(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.draft.set("source.model", "org/big")
        await pilot.press("d")
        await pilot.pause()
        assert "There is a half-filled merge" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert app.draft.get("source.model") == "org/big"
        await pilot.press("d", "home", "shift+tab", "shift+tab", "enter")
        await settle(pilot)
        assert str(app.draft.get("source.model")).endswith("source-llama")


async def test_every_answer_of_a_question_can_be_read(app: TmergeApp, tmp_path: Path) -> None:
    run_index.remember(write_run(tmp_path / "done").path)
    async with app.run_test(size=(60, 20)) as pilot:
        await settle(pilot)
        app.screen.query_one("#runs").focus()
        await pilot.press("x")
        await pilot.pause()
        text = screen_text(app)
        for answer in ("Delete the folder", "Only take it off the list", "Keep it"):
            assert answer in text, text


async def test_help_shows_the_screens_own_keys_first(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto("models")
        await settle(pilot)
        await pilot.press("f1")
        await pilot.pause()
        text = screen_text(app)
        assert text.index("Browse") < text.index("On every screen") and "Swap" in text
        assert "Move cursor" not in text, "folded"
