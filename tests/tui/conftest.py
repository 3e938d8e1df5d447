"""Every test has its own state folder, no network, no animation, and a terminal of true colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.widgets import Input

from tests.tui.doubles import FakeProbe
from tmerge_tui.tui import catalog
from tmerge_tui.tui.app import TmergeApp


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(Input.cursor_blink, "_default", False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def offline() -> None:
        raise catalog.OfflineError("no network in tests")

    monkeypatch.setattr(catalog, "_knock", offline)
    monkeypatch.setattr(catalog, "cached", lambda query="": [])
    yield


@pytest.fixture
def probe() -> FakeProbe:
    return FakeProbe()


@pytest.fixture
def app(probe: FakeProbe) -> Iterator[TmergeApp]:
    made = TmergeApp(probe=probe)
    made.animation_level = "none"
    yield made
    for handle in made.started:
        handle.process.kill()
        handle.process.wait()


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """Two folders that look like models from outside; the fake helper knows them."""
    folders = {}
    for role, family in (("source", "llama"), ("target", "qwen2")):
        folder = tmp_path / f"{role}-{family}"
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"model_type": "{family}"}}')
        (folder / "model.safetensors").write_bytes(b"0" * 2000)
        folders[role] = str(folder)
    return folders
