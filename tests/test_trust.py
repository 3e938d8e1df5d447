"""The code of a model runs only when a person has allowed it, and only from where no one else can write.

Reference: a model whose code leaves a file behind when it runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.command_line import inside
from tests.engine.pair import make_pair
from tmerge_tui import bundle
from tmerge_tui.commands import trust as asking
from tmerge_tui.errors import ModelError, StorageError, UsageError
from tmerge_tui.events import Logged, RunFailed
from tmerge_tui.files import as_the_umask_leaves
from tmerge_tui.models.config import read_config
from tmerge_tui.recipe import make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.system import open_to_others
from tmerge_tui.worker import trust
from tmerge_tui.worker.helper import Request
from tmerge_tui.worker.journal import Journal

CODE = """
import pathlib
from transformers import Qwen2Config
pathlib.Path({mark!r}).touch()
class Theirs(Qwen2Config):
    model_type = "theirs"
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe from elsewhere; the target's configuration is code that makes the file `ran`."""
    from transformers import dynamic_module_utils

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    pair = make_pair(tmp_path)
    config = tmp_path / "target" / "config.json"
    said = json.loads(config.read_text()) | {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    config.write_text(json.dumps(said))
    (tmp_path / "target" / "theirs.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    pair["target"] = {"model": pair["target"], "trust_remote_code": True}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(pair))
    return file


@pytest.mark.parametrize("command", [["--batch"], ["check"], ["plan"], ["scout"]])
def test_without_a_terminal_it_takes_trust(
    command: list[str], recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = inside(recipe.parent, monkeypatch, capsys, *command, str(recipe))
    assert code == 2 and "--trust" in err and str(recipe.parent / "target") in err
    assert not (recipe.parent / "ran").exists() and not (recipe.parent / "run").exists()


def test_trust_lets_it_run_and_is_kept(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(recipe.parent, monkeypatch, capsys, "check", str(recipe), "--trust")
    assert (recipe.parent / "ran").exists()
    allowed = make_recipe(yaml.safe_load(recipe.read_text()))
    assert trust.untrusted(allowed) == ()
    trust.refuse(allowed)
    other = make_recipe(
        yaml.safe_load(recipe.read_text()) | {"source": {"model": "org/x@v1", "trust_remote_code": True}}
    )
    assert trust.untrusted(other) == ("org/x@v1",)


@pytest.mark.parametrize(("answer", "allowed"), [("y", True), ("yes ", True), ("n", False), ("", False)])
def test_in_a_terminal_it_asks(answer: str, allowed: bool, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(isatty=lambda: True, readline=lambda: answer + "\n")
    monkeypatch.setattr(asking.sys, "stdin", terminal)
    monkeypatch.setattr(asking.sys.stderr, "isatty", lambda: True, raising=False)
    wanted = make_recipe(yaml.safe_load(recipe.read_text()))
    if allowed:
        asking.settle(wanted, False)
    else:
        with pytest.raises(UsageError):
            asking.settle(wanted, False)
    assert (trust.untrusted(wanted) == ()) is allowed


def test_the_helper_and_the_worker_refuse_too(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder from elsewhere, opened in the wizard or resumed by a program that does not ask."""
    from tmerge_tui.worker import main, questions

    data = yaml.safe_load(recipe.read_text())
    with pytest.raises(UsageError, match="--trust"):
        questions.checked(Request(0, "check", {"recipe": data}))
    run = RunDir.create(data["output"])
    run.recipe.write_bytes(recipe.read_bytes())
    with pytest.raises(UsageError, match="--trust"):
        questions.generate(Request(0, "generate", {"run": str(run.path), "model": "target", "prompt": "x"}))
    journal = Journal(run.events)
    assert main._run(run, journal) == 2 and isinstance(journal.final, RunFailed)
    journal.close()
    assert not (recipe.parent / "ran").exists()


def test_code_that_others_could_have_changed_is_not_run(recipe: Path) -> None:
    folder = recipe.parent / "target"
    with pytest.raises(ModelError, match="no language model"):  # its code has run
        read_config(folder, "theirs", True)
    assert (recipe.parent / "ran").exists()
    for place in (folder, recipe.parent / "modules"):
        place.chmod(0o777)
        with pytest.raises(ModelError, match="others can change"):
            read_config(folder, "theirs", True)
        place.chmod(0o755)


def test_whose_folder(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert open_to_others(inner) is None and open_to_others(inner / "not there yet") is None
    (tmp_path / "a").chmod(0o777)
    assert open_to_others(inner) == tmp_path / "a"
    (tmp_path / "a").chmod(0o1777)
    assert open_to_others(inner) is None  # as /tmp: b stays b
    assert open_to_others(tmp_path / "a") == tmp_path / "a"


@pytest.mark.skipif(not hasattr(os, "chown") or os.getuid() != 0, reason="only root gives a folder away")
def test_a_folder_of_someone_else(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    assert open_to_others(tmp_path) == tmp_path
    os.chown(tmp_path, 0, 12345)
    tmp_path.chmod(0o775)
    assert open_to_others(tmp_path) == tmp_path


def test_an_engine_that_others_could_have_exchanged_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "is_split", lambda: True)
    monkeypatch.setattr(bundle, "folder", lambda: tmp_path / "engine" / "1")
    (tmp_path / "engine" / "1").mkdir(parents=True)
    assert bundle.executable().parent == tmp_path / "engine" / "1"
    (tmp_path / "engine").chmod(0o777)
    with pytest.raises(StorageError, match="others can change"):
        bundle.executable()


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_what_a_run_leaves_respects_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        run = RunDir.create(tmp_path / "run")
        journal = Journal(run.events)
        journal.emit(Logged("info", "x"))
        journal.close()
        run.save(run.piece("a", "b"), {"x": torch.zeros(2)})
        run.save_json(run.piece("a", "b", ".json"), {})
        save_file({"x": torch.zeros(2)}, run.state / "library's own.safetensors")
        as_the_umask_leaves(run.state)
    finally:
        os.umask(before)
    files = {path.name: path.stat().st_mode & 0o777 for path in run.path.rglob("*") if path.is_file()}
    assert len(files) == 5 and set(files.values()) == {mode}, files
    assert run.state.stat().st_mode & 0o777 == 0o777 & ~umask


def test_no_event_holds_a_token(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl", ("hf_Secret0123456789",))
    journal.emit(Logged("info", "Bearer hf_Secret0123456789 was sent"))
    journal.close()
    assert "hf_Secret" not in (tmp_path / "events.jsonl").read_text()
    assert "Bearer *** was sent" in (tmp_path / "events.jsonl").read_text()


def test_no_crash_text_holds_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tmerge_tui.worker.main import describe

    monkeypatch.setenv("HF_TOKEN", "hf_Secret0123456789")
    error = RuntimeError("GET https://x/y?X-Amz-Signature=abc with hf_Secret0123456789")
    told = repr(describe(error))
    assert "hf_Secret" not in told and "Signature" not in told and "RuntimeError" in told

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("tmerge_tui.commands.listing.runs", fails)
    for debug in ("", "1"):
        monkeypatch.setenv("TMERGE_DEBUG", debug)
        code, out, err = inside(tmp_path, monkeypatch, capsys, "runs")
        assert code == 1 and "hf_Secret" not in out + err and "RuntimeError" in err
        assert ("Traceback" in err) is bool(debug)
