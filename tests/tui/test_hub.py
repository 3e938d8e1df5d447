"""The Models screen and a Hub: the real client and the real helper process, against the local server.

Reference: what the server was given to serve, and how often it was asked for weights.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from textual.widgets import Input, Static

from tests.hub.conftest import environment, hub
from tests.hub.server import Hub
from tests.tiny import make_model
from tests.tui.doubles import screen_text, settle, type_text, wait_for
from tests.tui.test_helper import over
from tests.tui.test_models import choose
from tmerge_tui.tui import catalog
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.widgets.card import ModelCard

__all__ = ["hub"]  # the fixture

REAL = {name: getattr(catalog, name) for name in ("_knock", "cached")}  # before every test of this folder goes without


@pytest.fixture
async def wizard(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[TmergeApp]:
    for name, value in REAL.items():
        monkeypatch.setattr(catalog, name, value)
    monkeypatch.setattr(catalog, "_last_seen", 0.0)
    monkeypatch.setattr(catalog, "_last_failure", None)
    for name, value in environment(hub, tmp_path / "hf").items():
        monkeypatch.setenv(name, value)
    source = make_model(tmp_path / "source", "llama", layers=3, hidden=32, dtype=torch.bfloat16)
    target = make_model(tmp_path / "target", "qwen2", layers=2, hidden=16, intermediate=24, seed=1)
    listed = {"pipeline_tag": "text-generation", "tags": ["license:mit"]}
    hub.add("org/brook-source", source, downloads=52_000, **listed)
    hub.add("org/brook-target", target, downloads=7, gated=True, **listed)
    hub.allowed.clear()
    app = TmergeApp()
    app.animation_level = "none"
    yield app
    await over(app.probe)


def card(app: TmergeApp, role: str) -> str:
    """What the card says, its lines joined."""
    return " ".join(str(app.screen.query_one(f"#{role}-facts", Static).render()).split())


async def test_a_model_found_by_typing_has_facts_and_a_verdict_before_any_download(
    wizard: TmergeApp,
    hub: Hub,
    tmp_path: Path,
) -> None:
    async with wizard.run_test(size=(120, 40)) as pilot:
        wizard.goto("models")
        await settle(pilot)
        await pilot.press(*"brook")
        await wait_for(pilot, "↓52 k")
        assert "gated" in screen_text(wizard)
        await pilot.press("down", "enter")
        assert wizard.draft.get("source.model") == "org/brook-source"
        await wait_for(pilot, "kB to download")
        said = card(wizard, "source")
        for expected in (
            "llama LlamaForCausalLM",
            "layers 3",
            "hidden 32",
            "dtype bfloat16",
            "licence mit",
            "gated no",
        ):
            assert expected in said, said

        await choose(pilot, "target", "org/brook-target")
        await wait_for(pilot, "has not been let in")
        said = card(wizard, "target")
        assert "accept them at" in said and "hf auth login" in said and "gated yes" in said, said
        assert "the target cannot be used" in screen_text(wizard)

        hub.repos["model", "org/brook-target"].gated = False
        await choose(pilot, "target", "org/brook-target@main")
        await wait_for(pilot, "✓ can be merged")
        text = " ".join(str(wizard.screen.query_one("#verdict-text", Static).render()).split())
        assert "3 → 2 layers" in text and "32 → 16 channels" in text
        assert not [
            r for r in hub.requests if r.method == "GET" and "safetensors" in r.path and "range" not in r.headers
        ]
        assert not list((tmp_path / "hf").rglob("*.safetensors"))

        wizard.goto("method")
        await wait_for(pilot, "download")


@pytest.mark.parametrize(
    ("name", "fault", "expected"),
    [
        ("org/nothing", {}, ("the Hub has no model org/nothing", "check the spelling")),
        ("org/brook-source", {"status": 401}, ("does not accept a nameless visit", "hf auth login")),
        ("org/brook-source", {"status": 429}, ("too many requests", "wait")),
        ("org/brook-source@v9", {}, ("has no revision v9", "leave the revision out")),
    ],
)
async def test_what_the_hub_refuses_is_said_in_words(
    wizard: TmergeApp,
    hub: Hub,
    name: str,
    fault: dict[str, int],
    expected: tuple[str, str],
) -> None:
    if fault:
        hub.fail("/api/models/org/brook-source*", times=-1, **fault)
    async with wizard.run_test(size=(120, 40)) as pilot:
        wizard.goto("models")
        await settle(pilot)
        await choose(pilot, "source", name)
        await wait_for(pilot, "✗")
        said = card(wizard, "source")
        assert all(part in said for part in expected), said


async def test_a_hub_that_went_away_is_said_at_once(wizard: TmergeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    async with wizard.run_test(size=(120, 40)) as pilot:
        wizard.goto("models")
        await settle(pilot)
        wizard.screen.query_one("#source", ModelCard).query_one(Input).focus()
        await type_text(pilot, "brook")
        await wait_for(pilot, "offline: the Hub cannot be reached")


async def test_a_data_set_found_by_typing(wizard: TmergeApp, hub: Hub) -> None:
    listed = {"downloads": 52_000, "tags": ["license:cc0-1.0"], "lastModified": "2026-01-02T00:00:00.000Z"}
    hub.add("org/brook-verses", {}, kind="dataset", **listed)
    hub.add("org/brook-letters", {}, kind="dataset", downloads=3, gated=True)
    wizard.draft.set("calibration.repo_id", "org/none")
    async with wizard.run_test(size=(120, 40)) as pilot:
        wizard.goto("data")
        await settle(pilot)
        await pilot.press("ctrl+u", *"brook")
        await wait_for(pilot, "↓52 k  cc0-1.0  2026-01")
        await wait_for(pilot, "↓3  gated")
        await pilot.press("down", "enter")
        assert wizard.draft.get("calibration.repo_id") == "org/brook-verses"
