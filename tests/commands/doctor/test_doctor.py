"""The whole report, from real processes and from findings made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tmerge_tui import __version__
from tmerge_tui.commands import doctor
from tmerge_tui.commands.doctor import resources
from tmerge_tui.commands.doctor.finding import Finding, Level

SHOWN = [
    "tmerge", "python", "packages", "torch", "gpu", "memory", "swap", "cores", "disk here", "hub cache",
    "temporary files", "own files", "hub", "certificates", "token", "extra eval", "extra lora", "extra ray", "terminal",
]  # fmt: skip


def run(*options: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tmerge_tui", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **more})


def test_the_report_of_this_machine() -> None:
    done = run("--json", "--offline", HF_TOKEN="hf_secret", HTTPS_PROXY="http://me:hunter2@proxy:1")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["version"] == 1 and told["tmerge"] == __version__
    found = {one["what"]: one for one in told["findings"]}
    assert set(found) >= {*SHOWN, "proxy"}
    assert told["problems"] == sum(one["level"] in ("problem", "missing") for one in told["findings"])
    assert {tuple(one) for one in told["findings"]} == {("what", "found", "advice", "level", "facts")}
    assert all(one["advice"] for one in told["findings"] if one["level"] != "ok"), "each problem with what to do"
    assert found["memory"]["facts"]["total"] > found["memory"]["facts"]["available"] > 0
    assert found["token"]["found"] == "present (from HF_TOKEN)"
    for secret in ("hf_secret", "hunter2"):
        assert secret not in done.stdout + done.stderr


def test_the_same_for_a_person() -> None:
    done = run(HF_HUB_OFFLINE="1", TERM="dumb")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [name for name in SHOWN if not any(line[2:].startswith(f"{name:<15} ") for line in lines)] == []
    assert "!" in next(line for line in lines if line[2:].startswith("terminal"))[:1]
    assert "each with what to do below it" in done.stderr


def test_torch_asked_by_another_process() -> None:
    told = json.loads(run("--torch").stdout)
    assert set(told) == {"version", "build", "devices", "architectures", "said", "asked"} and told["version"]


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("note", 0), ("problem", 0), ("missing", 1)])
def test_exit_code_and_marks(
    level: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Finding("disk", f"{Path.home()}/cache", "do it" if level != "ok" else "", Level(level))
    monkeypatch.setattr(doctor, "findings", lambda whoami: iter([one]))
    assert doctor.doctor() == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{'!' if level in ('problem', 'missing') else ' '} disk            ~/cache"
    assert lines[1:] == ([] if level == "ok" else ["                  do it"])


def test_a_part_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("no such counter for hf_abcdefgh")

    monkeypatch.setattr(resources, "swap", broken)
    assert doctor.doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    (told,) = [line for line in lines if line.startswith("! resources")]
    assert told.endswith("the rest is not known: RuntimeError: no such counter for hf_***")
    assert [
        name for name in ("memory", "hub", "terminal") if not any(line[2:].startswith(name) for line in lines)
    ] == []


def test_homes_are_not_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", "/home/jane.doe")
    facts: dict[str, Any] = {"folder": "/home/jane.doe/x", "all": ["/home/jane.doe"], "free": 3}
    monkeypatch.setattr(doctor, "findings", lambda whoami: iter([Finding("a", "/home/jane.doe/x", facts=facts)]))
    doctor.doctor(as_json=True)
    text = capsys.readouterr().out
    assert "jane" not in text
    assert json.loads(text)["findings"][0]["facts"] == {"folder": "~/x", "all": ["~"], "free": 3}
