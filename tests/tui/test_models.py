"""Models: choosing by path, by search and by picker; facts, verdict, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.widgets import Input, Static

from tests.tui.doubles import FakeProbe, screen_text, settle, type_text
from tests.tui.fakes import write_run
from tmerge_tui.errors import ModelError
from tmerge_tui.tui import catalog, needs
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.data import DataScreen
from tmerge_tui.tui.screens.models import ModelsScreen
from tmerge_tui.tui.widgets import finder
from tmerge_tui.tui.widgets.verdict import Verdict
from tmerge_tui.worker import run_index


async def choose(pilot, role: str, name: str) -> None:
    pilot.app.screen.query_one(f"#{role}").query_one(Input).focus()
    await pilot.press("ctrl+u")
    await type_text(pilot, name)
    await pilot.press("enter")
    await settle(pilot)


async def test_two_folders_give_cards_and_a_verdict(app: TmergeApp, models: dict[str, str]) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto("models")
        await settle(pilot)
        assert "choose a source and a target" in screen_text(app)
        await choose(pilot, "source", models["source"])
        assert "choose a target" in screen_text(app)
        await choose(pilot, "target", models["target"])
        text = screen_text(app)
        for expected in ("LlamaForCausalLM", "2.83 M", "6, kv 3, 32 wide", "Qwen2ForCausalLM", "493 k"):
            assert expected in text
        for expected in ("✓ can be merged", "6 → 4 layers", "192 → 96", "gate: the source has none", "licences differ"):
            assert expected in text
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, DataScreen)
        assert app.draft.get("source.model") == models["source"]


async def test_the_verdict_uses_the_room_it_has(app: TmergeApp, probe: FakeProbe, models: dict[str, str]) -> None:
    """A line for every kind of projection where there is room; what has none is a scroll away, and tab reaches it."""
    probe.answers["match"]["notes"] = [f"note {i}" for i in range(9)]
    for role, path in models.items():
        app.draft.set(f"{role}.model", path)
    async with app.run_test(size=(120, 36)) as pilot:
        app.goto("models")
        await settle(pilot)
        text = screen_text(app)
        assert "k      96 x 192 → 96 x 96" in text and "gate  left as it is" in text, text
        assert "o     192 x 192 → 96 x 96 …" in text, "some layers have another shape"
        assert text.index("licences differ") < text.index("skipped note 0")
        verdict = app.screen.query_one(Verdict)
        assert "note 8" not in text and verdict.can_focus
        verdict.focus()
        await pilot.press("end")
        await settle(pilot)
        assert "note 8" in screen_text(app)
        await pilot.resize_terminal(80, 24)
        await settle(pilot)
        assert "q k v o gate up down" in screen_text(app) and "96 x 192" not in screen_text(app)
        probe.answers["match"]["notes"] = []
        await pilot.press("f3")
        await settle(pilot)
        assert not verdict.can_focus


async def test_next_is_refused_until_both_are_chosen(app: TmergeApp, models: dict[str, str]) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto("models")
        await settle(pilot)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, ModelsScreen)
        assert "choose a source model" in screen_text(app)


async def test_swap(app: TmergeApp, models: dict[str, str]) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        app.draft.set("source.model", models["source"])
        app.draft.set("target.model", models["target"])
        app.goto("models")
        await settle(pilot)
        await pilot.press("f3")
        await settle(pilot)
        assert app.draft.get("source.model") == models["target"]
        assert app.draft.get("target.model") == models["source"]
        asked = [args for call, args in app.probe.asked if call == "match"]
        assert asked[-1]["source"]["name"] == models["target"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/no/such/folder", "no folder"),
        ("not an id", "nor a Hub id"),
        ("org/name", "the Hub cannot be reached"),
    ],
)
async def test_what_cannot_be_used_says_why_and_what_next(app: TmergeApp, name: str, expected: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.goto("models")
        await settle(pilot)
        await choose(pilot, "source", name)
        text = screen_text(app)
        assert "✗" in text and "→" in text
        assert expected in " ".join(text.split()), text


async def test_a_refused_model_is_refused_by_the_verdict(app: TmergeApp, probe: FakeProbe, models) -> None:
    probe.fails["facts"] = ModelError("quantised weights (gptq)", "full-precision weights", "choose the original")
    async with app.run_test(size=(120, 40)) as pilot:
        app.draft.set("source.model", models["source"])
        app.draft.set("target.model", models["target"])
        app.goto("models")
        await settle(pilot)
        text = screen_text(app)
        assert "quantised weights (gptq)" in text and "→ choose the original" in text
        assert "✗ cannot be merged" in text


async def test_typing_searches_the_hub_once_when_it_pauses(app: TmergeApp, monkeypatch) -> None:
    asked = []

    def search(query: str, limit: int = 20) -> list[catalog.Found]:
        asked.append(query)
        return [
            catalog.Found("org/small", "hub", parameters=1_240_000_000, downloads=52_000),
            catalog.Found("org/secret", "hub", parameters=8_030_000_000, downloads=9_900_000, gated=True),
        ]

    monkeypatch.setattr(catalog, "search", search)
    monkeypatch.setattr(finder, "DEBOUNCE", 1.0)  # a busy machine may take long between two keys
    monkeypatch.setattr(catalog, "describe", lambda name: catalog.Found(name, "hub", licence="mit", gated=True))
    async with app.run_test(size=(120, 40)) as pilot:
        app.goto("models")
        await settle(pilot)
        await pilot.press(*"smal")
        await settle(pilot, 0.1)
        assert asked == ["smal"]
        text = screen_text(app)
        assert "org/small" in text and "1.24 B  ↓52 k" in text and "gated" in text, text
        await pilot.press("down", "down", "enter")
        await settle(pilot)
        assert app.draft.get("source.model") == "org/secret"
        said = str(app.screen.query_one("#source-facts", Static).render())
        assert "gated      yes" in said and "the Hub, and already here" in said


async def test_offline_says_so_and_offers_the_cache(app: TmergeApp, monkeypatch, models) -> None:
    here = catalog.Found("org/cached-llama", "cache", None, 5_000_000)
    monkeypatch.setattr(catalog, "cached", lambda query="": [here] if query in here.name else [])
    async with app.run_test(size=(120, 40)) as pilot:
        app.goto("models")
        await settle(pilot)
        await pilot.press(*"llama")
        await settle(pilot, 0.1)
        text = screen_text(app)
        assert "org/cached-llama" in text and "cached 5 MB" in text and "offline" in text, text
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, ModelsScreen), "escape closes the list first"
        assert app.screen.query_one("#source").input.value == ""


async def test_a_path_lists_folders(app: TmergeApp, models, tmp_path) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        app.goto("models")
        await settle(pilot)
        await type_text(pilot, str(tmp_path / "sou"))
        await settle(pilot)
        assert [found.name for found in app.screen.query_one("#source").finder.found] == [models["source"]], (
            screen_text(app)
        )
        await pilot.press("down", "enter")
        await settle(pilot)
        assert app.draft.get("source.model") == models["source"]


async def test_the_picker_chooses_a_folder(app: TmergeApp, models, tmp_path) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        app.draft.set("source.model", models["source"])
        app.goto("models")
        await settle(pilot)
        app.screen.query_one("#target").query_one(Input).focus()
        await pilot.press("f2")
        await settle(pilot)
        path = app.screen.query_one(Input)
        path.value = models["target"]
        path.focus()
        await pilot.press("enter")
        await settle(pilot)
        assert app.draft.get("target.model") == models["target"]
        assert "can be merged" in str(app.screen.query_one("#verdict-text", Static).render())


@pytest.mark.parametrize(
    ("pasted", "name"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("huggingface.co/org/name/tree/v2", "org/name@v2"),
        ("https://hf.co/org/name/tree/main", "org/name"),
        ("https://huggingface.co/datasets/org/verses", "org/verses"),
        ("'/home/ann/my model'", "/home/ann/my model"),
        ('"~/models/small"  ', "~/models/small"),
        ("file:///home/ann/my%20model", "/home/ann/my model"),
        ("org/name@rev", "org/name@rev"),
    ],
)
def test_names_as_they_are_pasted(pasted: str, name: str) -> None:
    assert catalog.tidy(pasted) == name


async def test_a_source_may_be_a_gguf_file(app: TmergeApp, models, tmp_path: Path) -> None:
    file = tmp_path / "source-q4.gguf"
    file.write_bytes(b"GGUF")
    async with app.run_test(size=(120, 40)) as pilot:
        app.goto("models")
        await settle(pilot)
        source = app.screen.query_one("#source")
        source.query_one(Input).focus()
        await type_text(pilot, f"{tmp_path}/source-q")
        await settle(pilot)
        assert "source-q4.gguf" in screen_text(app), "it is offered as a folder would be"
        await pilot.press("down", "enter")
        await settle(pilot)
        assert app.draft.get("source.model") == str(file)
        assert ("facts", {"name": str(file), "folder": str(file)}) in app.probe.asked
        await choose(pilot, "target", models["target"])
        assert "can be merged" in screen_text(app)
        source.query_one(Input).focus()
        await pilot.press("f2")
        await settle(pilot)
        path = app.screen.query_one(Input)
        path.value = str(file)
        path.focus()
        await pilot.press("enter")
        await settle(pilot)
        assert app.draft.get("source.model") == str(file), "the picker takes it too"


def test_what_is_unpacked_is_told_beside_the_disk() -> None:
    said = {"seconds": 9.0, "device": "cpu", "memory": 1 << 30, "disk": 10**6, "download": 0}
    assert "unpacked" not in needs.told(said).plain
    assert needs.told({**said, "unpack": 16 * 10**9}).plain.endswith("disk 1 MB   unpacked 16 GB")


def test_what_a_file_of_a_repository_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def describe(name: str) -> catalog.Found:
        asked.append(name)
        return catalog.Found(name, "hub", licence="mit")

    monkeypatch.setattr(catalog, "_knock", lambda: None)
    monkeypatch.setattr("tmerge_tui.hub.search.describe", describe)
    found = catalog.resolve("org/name:q4.gguf@v2")
    assert asked == ["org/name@v2"] and (found.name, found.licence) == ("org/name:q4.gguf@v2", "mit")


async def test_a_quoted_path_is_a_model_and_the_title_names_it(app: TmergeApp, models) -> None:
    async with app.run_test(size=(60, 20)) as pilot:
        app.goto("models")
        await settle(pilot)
        await type_text(pilot, f"'{models['source']}'")
        await pilot.press("enter")
        await settle(pilot, 0.1)
        assert app.draft.get("source.model") == models["source"]
        assert "Source · source-llama" in screen_text(app), "whatever the width"


async def test_models_of_earlier_runs_are_offered_before_one_types(app: TmergeApp, models, tmp_path: Path) -> None:
    run = write_run(tmp_path / "done")
    run.recipe.write_text(run.recipe.read_text().replace("org/source-llama", models["source"]))
    run_index.remember(run.path)
    async with app.run_test(size=(120, 40)) as pilot:
        app.goto("models")
        await settle(pilot, 0.1)
        assert models["source"].rpartition("/")[2] in screen_text(app)
        await pilot.press("down", "enter")
        await settle(pilot, 0.1)
        assert app.draft.get("source.model") == models["source"]


async def test_models_that_were_read_are_not_read_again(
    app: TmergeApp, probe: FakeProbe, models: dict[str, str]
) -> None:
    def asked() -> int:
        return sum(call == "facts" for call, _ in probe.asked)

    async with app.run_test(size=(160, 50)) as pilot:
        for role, path in models.items():
            app.draft.set(f"{role}.model", path)
        app.goto("models")
        await settle(pilot)
        assert asked() == 2
        app.goto("data")
        await settle(pilot)
        app.goto("models")
        await settle(pilot)
        assert asked() == 2 and "can be merged" in screen_text(app) and "2.83 M" in screen_text(app)
        config = Path(models["source"]) / "config.json"
        config.write_text('{"model_type": "llama", "changed": true}')
        os.utime(config, ns=(1, 1))
        app.goto("data")
        await settle(pilot)
        app.goto("models")
        await settle(pilot)
        assert asked() == 3, "it has changed since"
