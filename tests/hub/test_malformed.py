"""What answers in place of the Hub: login pages, other services, broken answers. Never a bug of ours, and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Hub
from tests.tiny import make_model
from tmerge_tui.errors import DataError, ModelError
from tmerge_tui.hub.datasets import commit_of
from tmerge_tui.hub.locate import fetched, find
from tmerge_tui.hub.search import search_models
from tmerge_tui.recipe import ModelChoice


def info(**changes: Any) -> bytes:
    return json.dumps({"id": "org/m", "sha": "c" * 40, "siblings": [], "tags": [], **changes}).encode()


BODIES = [
    b"[]", b"{}", b"null", b"", b"<html>Please log in</html>", info(sha=None), info(sha="main"), info(siblings="x"),
    info(siblings=[{"x": 1}]), info(siblings=[{"rfilename": None}]), info(siblings=[{"rfilename": "a", "size": "big"}]),
]  # fmt: skip


def answer(hub: Hub, path: str, body: bytes) -> None:
    hub.fail(path, status=200, headers={"Content-Type": "application/json"}, body=body, times=-1)


@pytest.mark.parametrize("body", BODIES)
def test_answers_that_are_no_models(hub: Hub, tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.add("org/m", make_model(tmp_path / "m"))
    answer(hub, "/api/models/org/m*", body)
    with pytest.raises(ModelError, match="what answers for the Hub is not understood") as refused:
        find(ModelChoice(model="org/m"))
    assert "login page" in refused.value.hint and hub.url in refused.value.hint


def test_a_whole_copy_in_the_cache_does(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/m", make_model(tmp_path / "m"))
    fetched(find(ModelChoice(model="org/m")))
    answer(hub, "/api/models/org/m*", b"<html>Please log in</html>")
    found = find(ModelChoice(model="org/m"))
    assert found.pending is None and "cached copy used" in found.note and "not understood" in found.note


def test_answers_that_are_no_data_sets_and_no_lists(hub: Hub) -> None:
    answer(hub, "/api/datasets/*", b"{}")
    with pytest.raises(DataError, match="not understood"):
        commit_of("org/d", None)
    answer(hub, "/api/models*", b"<html>")
    with pytest.raises(ModelError, match="not understood"):
        search_models("x")
