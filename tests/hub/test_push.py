"""`tmerge push` against the local Hub. Reference: the files of the run folder."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import environment
from tests.hub.server import TOKEN, Hub
from tmerge_tui.engine.report.verdict import judge
from tmerge_tui.errors import ModelError, RunFolderError, UsageError
from tmerge_tui.hub.push import account, pack, push
from tmerge_tui.run_folder import RunDir

# the client's own upload of large files, in the version that is pinned
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

SAID = "/home/ada/private/text.txt: 3 duplicate samples left out"
CARD = "---\nlicense: mit\nbase_model:\n- org/target\n---\n# Merged\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as a finished run leaves it; the model files need not be a model to be sent."""
    folder = RunDir.create(tmp_path / "run").path
    (folder / "model").mkdir()
    (folder / "state" / "plan.safetensors").write_bytes(b"not for the Hub")
    for name, text in {
        "report.html": "<html>", "report.md": "# Report", "figures/plan.svg": "<svg>",
        "report.json": json.dumps({"verdict": judge([], []), "warnings": [{"where": "check", "message": SAID}]}),
        "model/config.json": "{}", "model/README.md": CARD, "model/tmerge_recipe.yaml": "source: a/b",
        "events.jsonl": "private", "worker.log": "private",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    for part in (1, 2):
        (folder / "model" / f"model-0000{part}-of-00002.safetensors").write_bytes(os.urandom(5000))
    return folder


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_a_run_arrives_whole_and_private(hub: Hub, run: Path, login: None) -> None:
    url = push(pack(run, "me/merged"), public=False)
    made = hub.repos["model", "me/merged"]
    assert url == f"{hub.url}/me/merged" and made.private
    model = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    report = {
        name: (run / name).read_bytes() for name in ("report.html", "report.md", "report.json", "figures/plan.svg")
    }
    assert made.files == {**model, **report}
    assert push(pack(run, "other"), public=True).endswith("/me/other") and not hub.repos["model", "me/other"].private


def test_an_interrupted_upload_goes_on(hub: Hub, run: Path, login: None) -> None:
    hub.fail("/api/models/me/merged/commit/*", status=418)
    with pytest.raises(ModelError, match="the Hub said 418"):
        push(pack(run, "me/merged"), public=False)
    sent = len(hub.asked("/put/*", "PUT"))
    push(pack(run, "me/merged"), public=False)
    assert sent == 2 and len(hub.asked("/put/*", "PUT")) == sent  # large files were there
    assert len(hub.repos["model", "me/merged"].files) == 9


def test_login_errors(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no one is logged in[\s\S]*`hf auth login`"):
        account()
    monkeypatch.setenv("HF_TOKEN", "hf_TokenOfSomeoneElse")
    with pytest.raises(ModelError, match="does not accept the token") as caught:
        account()
    assert "SomeoneElse" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert account() == "me"
    hub.fail("/api/repos/create", status=403, headers={"X-Error-Message": "You may not write to org"})
    with pytest.raises(ModelError, match=r"not allowed .*You may not write to org[\s\S]*token"):
        push(pack(run, "org/merged"), public=False)


def test_a_failed_upload_of_a_large_file_is_told(hub: Hub, run: Path, login: None) -> None:
    hub.fail("/put/*", status=403, times=-1)
    with pytest.raises(ModelError, match="me/merged: not allowed"):
        push(pack(run, "me/merged"), public=False)


def test_what_is_no_finished_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--repo a/b/c"):
        pack(run, "a/b/c")
    (run / "report.md").unlink()
    with pytest.raises(RunFolderError, match=r"has no report\.md[\s\S]*tmerge report"):
        pack(run, "me/merged")
    (run / "model").rename(run / "model-alpha-0.1")
    with pytest.raises(RunFolderError, match=r"no model in model/[\s\S]*--model: model-alpha-0\.1"):
        pack(run, "me/merged")


def tmerge(hub: Hub, home: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tmerge_tui", "push", *map(str, arguments)]
    env = environment(hub, home, **more)
    return subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)


def test_the_command(hub: Hub, run: Path, tmp_path: Path) -> None:
    refused = tmerge(hub, tmp_path / "home", run, "--repo", "me/merged", HF_TOKEN=TOKEN)
    assert refused.returncode == 2 and "--yes" in refused.stderr and not hub.asked("/api/repos/create")
    done = tmerge(hub, tmp_path / "home", run, "--repo", "me/merged", "--yes", HF_TOKEN=TOKEN)
    assert done.returncode == 0 and done.stdout == f"{hub.url}/me/merged\n"
    assert TOKEN not in refused.stderr + done.stderr and "uploading 8 files" in done.stderr
    for name, data in hub.repos["model", "me/merged"].files.items():
        assert b"/home/ada" not in data, name
    assert b"text.txt: 3 duplicate" in hub.repos["model", "me/merged"].files["report.html"]
    nobody = tmerge(hub, tmp_path / "home", run, "--repo", "me/merged", "--yes")
    assert nobody.returncode == 1 and "`hf auth login`" in nobody.stderr


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_it_asks_in_a_terminal(hub: Hub, run: Path, tmp_path: Path, answer: str, code: int) -> None:
    main, side = pty.openpty()
    command = [sys.executable, "-m", "tmerge_tui", "push", str(run), "--repo", "me/merged"]
    env = environment(hub, tmp_path / "home", HF_TOKEN=TOKEN)
    with subprocess.Popen(command, stdin=side, stderr=side, stdout=subprocess.PIPE, env=env) as process:
        os.write(main, f"{answer}\n".encode())
        out, _ = process.communicate()
    assert process.returncode == code and bool(out) == (code == 0)
    os.close(side)
    assert b"as me; a new repository is private" in os.read(main, 65536)
    assert bool(hub.commits) == (code == 0)
    os.close(main)
