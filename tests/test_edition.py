"""Which tmerge this is: from source, and as a binary describes itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tmerge_tui import __version__, edition


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a build writes; the answer is not remembered between tests."""
    monkeypatch.setattr(edition, "FILE", tmp_path / "edition.json")
    edition.edition.cache_clear()
    yield tmp_path / "edition.json"
    edition.edition.cache_clear()


def test_from_source_it_is_the_version_alone(described: Path) -> None:
    assert str(edition.edition()) == __version__
    assert edition.edition().engine is None


def test_a_binary_names_its_commit_and_build(described: Path) -> None:
    engine = {"sha256": "ab" * 32, "packed": 1, "unpacked": 2, "files": 3}
    facts = {"version": "1.2.3", "commit": "0123456789", "build": "CUDA 13.0", "packages": {"torch": "2.13.0"}}
    described.write_text(json.dumps({**facts, "engine": engine}))
    found = edition.edition()
    assert str(found) == "1.2.3 (commit 0123456789, CUDA 13.0 build)"
    assert found.packages == {"torch": "2.13.0"}
    assert found.engine == edition.Engine("ab" * 32, 1, 2, 3)


def test_outside_a_checkout_the_commit_is_left_out(described: Path) -> None:
    described.write_text(json.dumps({"version": "1.2.3", "commit": "", "build": "CPU", "packages": {}}))
    assert str(edition.edition()) == "1.2.3 (CPU build)"
