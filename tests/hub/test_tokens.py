"""The token goes to the Hub that was chosen, and nowhere else.

Reference: two servers on two ports; what the second one is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.command_line import TMERGE, started, wait_for
from tests.hub.server import TOKEN, Hub
from tests.tiny import make_model
from tmerge_tui.errors import TmergeError
from tmerge_tui.hub.datasets import commit_of, open_stream
from tmerge_tui.hub.download import download
from tmerge_tui.hub.headers import read_headers
from tmerge_tui.hub.listing import list_model
from tmerge_tui.hub.push import account
from tmerge_tui.hub.search import describe, search_models
from tmerge_tui.run_folder import RunDir


def _send_away(hub: Hub) -> None:
    where = f"{hub.blobs}/model/org/x/model.safetensors"
    hub.fail("/org/x/resolve/*", status=302, headers={"Location": where}, times=-1)


def _files(hub: Hub) -> None:
    listing = list_model("org/x")
    hub.fail(
        "/org/x/resolve/*", status=302, headers={"Location": f"{hub.blobs}/model/org/x/model.safetensors"}, times=-1
    )
    download(listing)


def _headers(hub: Hub) -> None:
    listing = list_model("org/x")
    hub.fail(
        "/org/x/resolve/*", status=302, headers={"Location": f"{hub.blobs}/model/org/x/model.safetensors"}, times=-1
    )
    read_headers(listing)


def _rows(hub: Hub) -> None:
    commit = commit_of("org/d", None)
    hub.fail("/datasets/*", status=302, headers={"Location": f"{hub.blobs}/elsewhere"}, times=-1)
    list(open_stream("org/d", None, "train", commit, 0).rows)


ASKING: dict[str, tuple[Callable[[Hub], object], str]] = {
    "facts of a model": (lambda hub: list_model("org/x"), "/api/models/org/x*"),
    "description": (lambda hub: describe("org/x"), "/api/models/org/x*"),
    "search": (lambda hub: search_models("x"), "/api/models"),
    "whose token": (lambda hub: account(), "/api/whoami-v2"),
    "a data set": (lambda hub: commit_of("org/d", None), "/api/datasets/*"),
    "files": (_files, ""),
    "headers": (_headers, ""),
    "rows": (_rows, ""),
}


@pytest.mark.parametrize("what", list(ASKING))
def test_no_token_follows_a_redirect_to_another_host(
    what: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/x", make_model(tmp_path / "model", "llama"))
    hub.add("org/d", {"train.jsonl": b'{"text": "a"}\n' * 20}, kind="dataset")
    call, path = ASKING[what]
    if path:
        hub.fail(path, status=307, headers={"Location": f"{hub.blobs}/stolen"}, times=-1)
    with suppress(TmergeError):
        call(hub)
    mine, theirs = ([r for r in hub.requests if r.host == host] for host in ("hub", "blobs"))
    assert any(r.headers.get("authorization") == f"Bearer {TOKEN}" for r in mine)
    assert not [r for r in theirs if "authorization" in r.headers or TOKEN in repr((r.path, r.query, r.headers))]


def test_no_process_and_no_file_of_a_run_holds_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = RunDir(tmp_path / "run")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: org/a\ntarget: org/b\ncalibration: {{path: text.txt}}\noutput: {run.path}\n")
    with started("--batch", recipe) as process:
        wait_for(run, "StageStarted")
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        lines = [" ".join(one.cmdline()) for one in tree]
        assert len(lines) > 1 and TMERGE[0] in lines[0] and not any(TOKEN in line for line in lines)
        process.terminate()
        process.communicate()
    files = [path for path in (*run.path.rglob("*"), *(tmp_path / "state").rglob("*")) if path.is_file()]
    assert len(files) > 4 and not [path for path in files if TOKEN.encode() in path.read_bytes()]
