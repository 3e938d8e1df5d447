"""The command line as a user meets it: real processes, fake pipelines, exit codes, stdout apart from stderr."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import TMERGE, environment, started, tmerge, wait_for
from tmerge_tui import __version__
from tmerge_tui.events import RunFinished, decode
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.follow import cancel, state_of


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    data = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": str(tmp_path / "run")}
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    folder = RunDir(tmp_path / "run")
    yield folder
    cancel(folder)


def test_version_and_help() -> None:
    assert tmerge("--version").stdout == f"tmerge {__version__}\n"
    shown = tmerge("--help")
    assert shown.returncode == 0
    commands = ("demo", "plan", "check", "watch", "cancel", "report", "eval", "models", "doctor", "--batch", "--set")
    for command in commands:
        assert command in shown.stdout
    assert "_worker" not in shown.stdout


def test_without_a_terminal_the_way_to_batch_is_shown() -> None:
    done = tmerge()
    assert done.returncode == 2 and done.stdout == "" and "tmerge --batch RECIPE" in done.stderr


def test_a_dumb_terminal_gets_no_wizard() -> None:
    main, side = pty.openpty()
    done = subprocess.run(TMERGE, stdin=side, stderr=side, stdout=subprocess.PIPE, env=environment(TERM="dumb"))
    os.close(side)
    assert done.returncode == 2 and b"--batch" in os.read(main, 4096)
    os.close(main)


def test_batch_prints_the_result_on_stdout_and_the_rest_on_stderr(recipe: Path, run: RunDir) -> None:
    done = tmerge("--batch", recipe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "seed 0, alpha 0.1", f"model   {run.model}", f"report  {run.path}/report.html",
    ]  # fmt: skip
    assert "Solving transport: done in" in done.stderr and "warning: data: two samples were empty" in done.stderr
    assert "\x1b" not in done.stderr
    assert state_of(run) == "finished"
    # the same command again, at once
    assert tmerge("--batch", recipe, "--quiet").stderr == ""


def test_the_command_line_changes_the_recipe(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done = tmerge(
        "--batch", recipe, "--output", other, "--device", "cpu", "--offline",
        "--set", "fusion.alpha=5e-2", "--set", "seed=7", "--set", "source.revision=main",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed 7, alpha 0.05\n")
    written = yaml.safe_load((other / "recipe.yaml").read_text())
    assert written["device"] == "cpu" and written["source"]["revision"] == "main"
    assert not (tmp_path / "run").exists()


def test_the_executor_is_an_option(recipe: Path, tmp_path: Path) -> None:
    def asked(*arguments: str) -> dict[str, Any]:
        done = tmerge("--batch", recipe, *arguments)
        assert done.returncode == 0, done.stderr
        chosen = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["transport"]
        return {name: chosen[name] for name in ("executor", "ray_address")}

    assert asked() == {"executor": "local", "ray_address": ""}
    there = {"executor": "ray", "ray_address": "head:6379"}
    assert asked("--executor", "ray", "--ray-address", "head:6379") == there
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "transport": there}))
    assert asked() == there
    assert asked("--executor", "local") == {"executor": "local", "ray_address": ""}  # the recipe's address is for ray
    done = tmerge("--batch", recipe, "--executor", "local", "--ray-address", "auto")
    assert done.returncode == 2 and "found auto with executor: local" in done.stderr


def test_json_is_the_event_file(recipe: Path, run: RunDir) -> None:
    done = tmerge("--batch", recipe, "--json", "--quiet")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == run.events.read_text()
    assert isinstance(decode(done.stdout.splitlines()[-1]).event, RunFinished)  # type: ignore[union-attr]
    again = tmerge("--batch", recipe, "--json")
    assert done.stdout + again.stdout == run.events.read_text()  # a second run prints its own events only


@pytest.mark.parametrize(
    ("fake", "code", "words"),
    [
        ("numerics", 1, ["NaN in layer 3", "expected: finite activations", "next: use dtype: float32"]),
        ("refused", 2, ["2 problems", "source: no such folder", "fusion.k: 128", "next: correct both"]),
        ("breaks", 1, ["unexpected KeyError: 'layers'", "bug", "worker.log"]),
        ("segfaults", 1, ["SIGSEGV", "Solving transport", "run the same command"]),
        ("starves", 1, ["out of memory", "batch_size"]),
    ],
)
def test_failures_are_told_in_full_and_without_traceback(recipe: Path, fake: str, code: int, words: list[str]) -> None:
    done = tmerge("--batch", recipe, fake=fake)
    assert done.returncode == code and done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_all_recipe_problems_come_before_anything_is_made(recipe: Path, tmp_path: Path) -> None:
    done = tmerge("--batch", recipe, "--set", "fusion.alpha=1.5", "--set", "transport.epsilom=1", "--device", "gpu")
    assert done.returncode == 2 and "3 problems" in done.stderr
    assert "did you mean epsilon?" in done.stderr and not (tmp_path / "run").exists()


def test_usage_errors(recipe: Path, tmp_path: Path) -> None:
    for arguments in (
        ["--nonsense"], ["frobnicate"], ["--batch"], ["--json"], ["--batch", recipe, "demo"],
        ["--batch", recipe, "--set", "alpha"], ["--batch", tmp_path / "none.yaml"], ["watch"],
        ["check", tmp_path],
    ):  # fmt: skip
        done = tmerge(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_an_output_that_is_not_a_run_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    done = tmerge("--batch", recipe, "--output", tmp_path / "mine")
    assert done.returncode == 1 and "is not a run of tmerge" in done.stderr
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("fake", ["sleeps", "deaf", "holds_interpreter"])
def test_ctrl_c_stops_and_says_how_to_go_on(recipe: Path, run: RunDir, fake: str, number: signal.Signals) -> None:
    with started("--batch", recipe, fake=fake) as batch:
        wait_for(run, "StageStarted")
        batch.send_signal(number)
        out, err = batch.communicate()
    assert batch.returncode == 128 + number and out == ""
    assert "the same command continues" in err and "Traceback" not in err
    assert state_of(run) == "interrupted"


def test_a_reader_that_leaves_does_not_stop_the_run(recipe: Path, run: RunDir) -> None:
    command = " ".join([*TMERGE, "--batch", str(recipe), "--json", "--quiet"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 1
    assert state_of(run) == "finished"


def test_a_closed_or_narrow_stdout_is_no_error(recipe: Path) -> None:
    command = " ".join([*TMERGE, "--batch", str(recipe), "--quiet"])
    closed = subprocess.run(["bash", "-c", f"{command} >&-"], capture_output=True, text=True, env=environment())
    assert (closed.returncode, closed.stderr) == (0, "")
    ascii_only = tmerge("--batch", recipe, "--quiet", "--output", recipe.parent / "ẹ̀kọ́", PYTHONIOENCODING="ascii")
    assert (ascii_only.returncode, ascii_only.stderr) == (0, "") and "??k??" in ascii_only.stdout


def test_help_into_a_closed_pipe() -> None:
    command = " ".join([*TMERGE, "--help"])
    done = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True)
    assert done.stderr == ""


def test_bars_on_a_terminal(recipe: Path) -> None:
    main, side = pty.openpty()
    with subprocess.Popen(
        [*TMERGE, "--batch", str(recipe)],
        stdin=side,
        stderr=side,
        stdout=subprocess.PIPE,
        env=environment(NO_COLOR="1"),
    ) as batch:
        os.close(side)
        seen = b""
        with suppress(OSError):  # Linux: the other side is closed
            while part := os.read(main, 65536):
                seen += part
        os.close(main)
        out, _ = batch.communicate()
    text = seen.decode()
    assert batch.returncode == 0 and out.startswith(b"seed 0")
    assert "whole run" in text and "Solving transport" in text and "2/2 pairs" in text
    assert "\x1b[3" not in text  # no colours
