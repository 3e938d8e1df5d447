"""Any command, any moment: Ctrl-C and SIGTERM end it with one line and 130 or 143, and leave nothing behind.

The commands are those of the click group, so a new one is interrupted too. TMERGE_MOMENTS says how many moments of its
first three seconds each command is interrupted at (`make moments`: 20); the suite takes two.
"""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil
import pytest
import yaml

from tests.engine.report.sample_results import make_results
from tests.tiny import make_model, make_text
from tests.waiting import until
from tmerge_tui.cli import tmerge
from tmerge_tui.events import RunInterrupted
from tmerge_tui.recipe import Recipe, load_recipe, parse_recipe
from tmerge_tui.run_folder import MARK as RUN
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import spawn
from tmerge_tui.worker.follow import last_word, state_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether a process listens")

TMERGE = [sys.executable, "-P", "-m", "tmerge_tui"]
MOMENTS = int(os.environ.get("TMERGE_MOMENTS", "2"))
SPAN = 3.0  # seconds
MARK = "TMERGE_TEST_MARK"  # in the environment of every process that comes of a command
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Place:
    """Everything that commands may want, and where whatever they leave behind would lie."""

    path: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    workers: list[spawn.Handle] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("home", "tmp", "work"):
            (self.path / name).mkdir()

    @property
    def work(self) -> Path:
        return self.path / "work"

    def environment(self) -> dict[str, str]:
        mine = {"HOME": self.path / "home", "TMPDIR": self.path / "tmp", "HF_HOME": self.path / "home"}
        for name in ("STATE", "CACHE", "CONFIG", "DATA"):
            mine[f"XDG_{name}_HOME"] = self.path / "home"
        root = str(Path(__file__).parents[1])
        more = {MARK: self.mark, "TMERGE_PIPELINE": "tests.worker.fakes:sleeps", "PYTHONPATH": root, "TERM": "xterm"}
        return {**os.environ, **{name: str(path) for name, path in mine.items()}, **more}

    def live(self, name: str) -> RunDir:
        """A run that goes on for a minute."""
        run = RunDir.create(self.work / name)
        run.recipe.write_text((self.work / "recipe.yaml").read_text())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMERGE_PIPELINE", "tests.worker.fakes:sleeps")
            self.workers.append(spawn.start(run))
        until(lambda: state_of(run) == "running")
        return run

    def left(self) -> list[str]:
        """Files that are not whole, and processes that still run."""
        files = [str(path) for path in self.path.rglob("*") if path.suffix in (".part", ".tmp")]
        files += [str(path) for path in (self.path / "tmp").iterdir()]
        return files + [str(process) for process in processes(self.mark)]


def processes(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                yield process
        except psutil.Error:
            continue


def listens(process: subprocess.Popen[str]) -> bool:
    """Whether it has come as far as our first instruction: before that, SIGTERM is not handled. Or has ended."""
    if process.poll() is not None:
        return True
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    text = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": "run"}
    (made.work / "recipe.yaml").write_text(yaml.safe_dump(text))
    yield made
    for process in processes(made.mark):
        process.kill()
    for worker in made.workers:
        with worker.process as process:
            process.kill()


def finished(place: Place) -> RunDir:
    run = RunDir.create(place.work / "finished")
    (run.path / "report.json").write_text(json.dumps(make_results()))
    run.recipe.write_text((place.work / "recipe.yaml").read_text())
    return run


def model(place: Place) -> Path:
    if not (place.work / "model").exists():
        make_model(place.work / "model", "llama", layers=1)
        make_text(place.work / "text.txt")
        (place.work / "real.yaml").write_text(
            "source: model\ntarget: model\ncalibration: {path: text.txt, samples: 20, holdout: 10}\n"
            "fusion: {k: 8}\noutput: real\n"
        )
    return place.work / "model"


# What to say for a command's arguments, by their names; a command with others fails until it says so here.
VALUES: dict[str, Callable[[Place], str]] = {
    "recipe": lambda place: str(model(place).with_name("real.yaml")),
    "recipe_or_model": lambda place: str(model(place)),
    "run": lambda place: str(finished(place).path),
    "repo": lambda place: "me/model",
}
# Where the plain arguments lead nowhere.
OTHERS: dict[str, Callable[[Place], list[str]]] = {
    "watch": lambda place: ["watch", str(place.live("live").path)],
    "cancel": lambda place: ["cancel", str(place.live(f"live-{uuid.uuid4().hex}").path)],
    "eval": lambda place: ["eval", str(finished(place).path), "--tasks", "arc_easy"],
    "--batch": lambda place: ["--batch", "recipe.yaml"],
    "_worker": lambda place: ["_worker", str(finished(place).path)],
    "compare": lambda place: ["compare", str(finished(place).path), str(finished(place).path)],
    "generate": lambda place: ["generate", str(finished(place).path), "Two rivers"],
    "init": lambda place: ["init", "a/b", "c/d", "x.txt"],
}
ENDLESS = ("demo", "eval", "watch", "--batch", "_worker", "_probe")  # at least for the first three seconds
NAMES = sorted({*tmerge.commands, *OTHERS, "_probe", "--help"})


def arguments(name: str, place: Place) -> list[str]:
    if name in OTHERS:
        return OTHERS[name](place)
    if name not in tmerge.commands:
        return [name]
    said = [name]
    for parameter in tmerge.commands[name].params:
        if parameter.required:
            assert parameter.name in VALUES, f"{name}: this test does not know what to say for {parameter.name}"
            value = VALUES[parameter.name](place)
            said += [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]
    return said


def as_recipe(content: bytes) -> Recipe:
    return parse_recipe(content.decode())


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", NAMES)
def test_any_command_any_moment(name: str, number: signal.Signals, place: Place) -> None:
    chance = random.Random(f"{name} {number}")
    moments = [SPAN * chance.random() ** 2 for _ in range(MOMENTS // 2)]  # the sooner the likelier: some end at once
    said = arguments(name, place)
    kept = "finished/*.json" if name == "resume" else "finished/*.[jy]*"  # a run writes what it was asked for
    before = {path: path.read_bytes() for path in place.work.glob(kept)}
    for moment in moments:
        process = subprocess.Popen(
            [*TMERGE, *said], cwd=place.work, env=place.environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with process:
            until(lambda: listens(process))  # noqa: B023
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            stopped = process.returncode is None
            until(lambda: process.poll() is not None)  # noqa: B023
            out, err = process.communicate()
        told = f"{name}, {number.name} after {moment:.3f} s: {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err and "Exception ignored" not in err, told
        if name == "_worker":  # says how it ended in the events, not on the terminal
            assert process.returncode == 130, told
            assert isinstance(last_word(RunDir(place.work / "finished").events), RunInterrupted), told
        elif process.returncode == 128 + number:
            assert err.splitlines()[-1].startswith(("stopped", "no longer watching")), told
        else:  # it had done its work
            assert name not in ENDLESS and process.returncode in (0, 1, 2), told
        assert stopped or name not in ENDLESS, told
        assert place.left() == [], told
        if name == "cancel":
            said = arguments(name, place)
    for path, content in before.items():
        # a report and a recipe are written again, in their own layout
        read = json.loads if path.suffix == ".json" else as_recipe
        assert read(path.read_bytes()) == read(content), f"{name} has changed {path}"
    for run in place.work.glob(f"*/{RUN}"):
        RunDir.create(run.parent)  # taken for what it is
        if (run.parent / "recipe.yaml").exists():
            load_recipe(run.parent / "recipe.yaml")


def python(place: Place, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=place.work, env=place.environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


HEED = "import os, sys\nfrom tmerge_tui import stopping\nstopping.heed()\n"


def test_what_is_held_is_carried_out_and_what_is_undone_is_taken_back(place: Place) -> None:
    code = HEED + (
        "def undo(): open('undone', 'w').close()\n"
        "with stopping.undone(undo):\n"
        "    with stopping.held(): print('in', flush=True); sys.stdin.readline(); print('whole', flush=True)\n"
        "    print('too far', flush=True)"
    )
    with python(place, code) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate("go on\n")
    assert (process.returncode, out, err) == (143, "whole\n", "stopped\n")
    assert (place.work / "undone").exists()


def test_a_signal_between_two_programs_is_not_lost(place: Place) -> None:
    """The terminal part of the one-file executable goes on as its engine."""
    then = HEED + "print('too far')"
    code = HEED + (
        "stopping.block(); print('in', flush=True); sys.stdin.readline()\n"
        f"os.execv(sys.executable, [sys.executable, '-c', {then!r}])"
    )
    with python(place, code) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate("go on\n")
    assert (process.returncode, out, err) == (130, "", "stopped\n")


def test_a_program_that_is_asked_goes_too(place: Place) -> None:
    tool = place.work / "nvidia-smi"
    tool.write_text("#!/bin/sh\ntouch asked\nexec sleep 600\n")
    tool.chmod(0o755)
    code = HEED + f"from tmerge_tui import machine\nmachine.PATIENCE = 600\nmachine.answer_of([{str(tool)!r}], 600)"
    with python(place, code) as process:
        until((place.work / "asked").exists)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (143, "", "stopped\n")
    until(lambda: place.left() == [])


# the wizard

ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY)
os.execv(sys.executable, [sys.executable, "-P", "-m", "tmerge_tui"])
"""
MODES = ("1049", "1000", "1003", "2004", "1004")  # alternate screen, mouse twice, pasting, focus


class Wizard:
    """`tmerge` on a terminal of its own, which is read all the time."""

    def __init__(self, place: Place) -> None:
        self.main, self.side = pty.openpty()
        self.before = termios.tcgetattr(self.side)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL], cwd=place.work, env=place.environment(), text=True,
            stdin=self.side, stdout=self.side, stderr=self.side,
        )  # fmt: skip
        self.output = b""

    def read(self) -> bytes:
        """What it has written up to now."""
        while select.select([self.main], [], [], 0.01)[0]:
            try:
                self.output += os.read(self.main, 65536)
            except OSError:  # nobody has the other side open any more
                break
        return self.output

    def end(self) -> int:
        until(lambda: (self.read(), self.process.poll() is not None)[1])
        self.read()
        return self.process.returncode

    def close(self) -> None:
        for descriptor in {self.main, self.side} - {-1}:
            os.close(descriptor)
        with self.process:
            self.process.kill()

    def assert_restored(self) -> None:
        assert termios.tcgetattr(self.side) == self.before
        for mode in MODES:
            switches = re.findall(rb"\x1b\[\?%b([hl])" % mode.encode(), self.output)
            assert switches[-1:] in ([], [b"l"]), f"mode {mode} is left on"
        assert re.findall(rb"\x1b\[\?25([hl])", self.output)[-1:] in ([], [b"h"]), "the cursor is hidden"


@pytest.fixture
def wizard(place: Place) -> Iterator[Wizard]:
    made = Wizard(place)
    yield made
    made.close()


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP], ids=lambda number: number.name)
def test_the_wizard_gives_the_terminal_back(number: signal.Signals, wizard: Wizard, place: Place) -> None:
    until(lambda: b"\x1b[?1049h" in wizard.read() and b"New merge" in wizard.output)
    os.write(wizard.main, b"n")
    until(lambda: (wizard.read(), any("_probe" in process.cmdline() for process in processes(place.mark)))[1])
    wizard.process.send_signal(number)
    assert wizard.end() == 128 + number
    wizard.assert_restored()
    assert b"Traceback" not in wizard.output and wizard.output.endswith(b"stopped\r\n")
    until(lambda: place.left() == [])  # the helper goes when it notices that nobody can ask any more


def test_the_wizard_goes_with_its_terminal(wizard: Wizard, place: Place) -> None:
    until(lambda: b"\x1b[?1049h" in wizard.read() and b"New merge" in wizard.output)
    os.close(wizard.side)
    os.close(wizard.main)  # the kernel sends SIGHUP, and whatever is written now fails
    wizard.main = wizard.side = -1
    assert wizard.process.wait() == 128 + signal.SIGHUP
    assert place.left() == []


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP], ids=lambda number: number.name)
def test_the_wizard_at_any_moment(number: signal.Signals, place: Place) -> None:
    chance = random.Random(f"wizard {number}")
    for moment in (SPAN / 3 * chance.random() for _ in range(MOMENTS // 2)):
        wizard = Wizard(place)
        try:
            until(lambda: listens(wizard.process))  # noqa: B023
            until_then = time.monotonic() + moment
            until(lambda: (wizard.read(), time.monotonic() > until_then)[1])  # noqa: B023
            wizard.process.send_signal(number)
            code = wizard.end()
            told = f"{number.name} after {moment:.3f} s: {code}\n{wizard.output!r}"
            not_yet = number == signal.SIGHUP and b"\x1b[" not in wizard.output and code == -number
            assert code == 128 + number or not_yet, told
            wizard.assert_restored()
            assert b"Traceback" not in wizard.output, told
        finally:
            wizard.close()
        assert place.left() == [], told
