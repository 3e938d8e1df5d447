"""One attempt and what came of it: a clear error, a right result, or a fault.

A fault is an exception that is no TmergeError, an error that holds a traceback, a wrong result (AssertionError), more
time or memory than an attempt may take, a process that dies, and a file that is written outside the folders given.
Cases run in forked children, a piece at a time: what kills the child is known by the number of the case it was at.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tmerge_tui.errors import TmergeError

Edit = tuple[Any, ...]  # what is changed, as plain data: a case is a list of them
PIECE = 250  # cases of one child
LONGEST = 20.0  # seconds that one attempt may take
ROOM = 6 << 30  # bytes of address space that a child may take beyond what it has
WORDS = 20_000  # characters that an error may have


class TooLong(BaseException):
    """No `except Exception` of the program may swallow it."""


@dataclass(frozen=True)
class Campaign:
    """`propose` makes the edits of a case, `attempt` builds its input in a folder and tries it.

    `attempt` raises TmergeError for a clear refusal, AssertionError for a wrong result, and returns for a right one.
    """

    name: str
    count: int  # cases of a full run
    propose: Callable[[Random], list[Edit]]
    attempt: Callable[[list[Edit], Path], None]


@dataclass
class Figures:
    """Of one campaign; `faults` holds the smallest edits found, one for each kind of fault."""

    name: str
    seed: int
    cases: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0  # seconds
    peak: int = 0  # bytes that a child took in all
    seconds: float = 0.0
    faults: list[dict[str, Any]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)  # classes of clear errors


def dice_of(name: str, seed: int, number: int) -> Random:
    return Random(f"{name}-{seed}-{number}")


def run_campaign(campaign: Campaign, seed: int, share: float, until: float, out: Path) -> Figures:
    """Runs `share` of the cases, or as many as fit until `until` (time.monotonic); failures leave a folder in `out`."""
    figures = Figures(campaign.name, seed)
    begun, wanted = time.monotonic(), max(1, round(campaign.count * share))
    for first in range(0, wanted, PIECE):
        if time.monotonic() >= until:
            break
        _piece(campaign, figures, range(first, min(first + PIECE, wanted)), until, out)
    figures.seconds = time.monotonic() - begun
    return figures


def _piece(campaign: Campaign, figures: Figures, numbers: range, until: float, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tmerge-soak-") as place:
        log = Path(place) / "outcomes"
        child = os.fork()
        if child == 0:
            _child(campaign, figures.seed, numbers, until, Path(place), log)
        _, status, used = os.wait4(child, 0)
        figures.peak = max(figures.peak, used.ru_maxrss * 1024)
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        told = {line["number"]: line for line in lines if "outcome" in line}
        for line in told.values():
            figures.cases += 1
            figures.slowest = max(figures.slowest, line["seconds"])
            if line["outcome"] == "fault":
                _keep(figures, line, out)
            elif line["outcome"] == "refused":
                figures.refused += 1
                figures.errors[line["kind"]] += 1
            else:
                figures.accepted += 1
        if status != 0:
            at = next((line["number"] for line in reversed(lines) if "outcome" not in line), numbers[0])
            edits = campaign.propose(dice_of(campaign.name, figures.seed, at))
            died = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            figures.cases += 1
            _keep(figures, {"number": at, "fault": f"the process died: {died}", "edits": edits, "trace": ""}, out)
            if at + 1 < numbers.stop and time.monotonic() < until:
                _piece(campaign, figures, range(at + 1, numbers.stop), until, out)


def _keep(figures: Figures, line: dict[str, Any], out: Path) -> None:
    """One fault of each kind, the one with the fewest edits."""
    found = {name: line[name] for name in ("number", "fault", "edits", "trace")}
    same = next((old for old in figures.faults if _kind(old["fault"]) == _kind(found["fault"])), None)
    if same is not None:
        same["times"] += 1
        if len(repr(found["edits"])) >= len(repr(same["edits"])):
            return
        same.update(found)
    else:
        figures.faults.append(found | {"times": 1})
    out.mkdir(parents=True, exist_ok=True)
    name = f"{figures.name}-{figures.seed}-{found['number']}.json"
    (out / name).write_text(json.dumps(found, indent=1, default=repr), "utf-8")


def _kind(fault: str) -> str:
    return "".join(c for c in fault.splitlines()[0][:80] if not c.isdigit())


def _child(campaign: Campaign, seed: int, numbers: range, until: float, place: Path, log: Path) -> None:
    """Never returns."""
    code = 1
    try:
        _bound_memory()
        shut: list[Any] = []
        sys.addaudithook(lambda event, args: _watch(event, args, place, shut))
        os.environ.update(TMPDIR=str(place), XDG_STATE_HOME=str(place / "state"), HF_HOME=str(place / "hf"))
        tempfile.tempdir = str(place)
        with open(log, "a", encoding="utf-8") as told:
            for number in numbers:
                if time.monotonic() >= until:
                    break
                told.write(json.dumps({"number": number}) + "\n")
                told.flush()
                edits = campaign.propose(dice_of(campaign.name, seed, number))
                line = judged(campaign, edits, place, shut)
                if line["outcome"] == "fault":
                    edits, line = _smallest(campaign, edits, line, place, shut)
                    line["edits"] = edits
                told.write(json.dumps({"number": number, **line}, default=repr) + "\n")
                told.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def judged(campaign: Campaign, edits: list[Edit], folder: Path, shut: list[Any]) -> dict[str, Any]:
    """Outcome, seconds, and for a fault what it was. The case has a folder of its own in `folder`."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    shut.clear()
    begun = time.monotonic()
    fault, trace, kind, outcome = "", "", "", "accepted"
    try:
        with _in_time():
            campaign.attempt(edits, folder)
    except TmergeError as error:
        outcome, kind, said = "refused", type(error).__name__, str(error)
        if not said.strip() or len(said) > WORDS or "Traceback" in said:
            fault = f"an error that is not clear ({len(said)} characters): {said[:200]}"
    except TooLong:
        fault, trace = f"took more than {LONGEST:g} s", traceback.format_exc()
    except BaseException as error:
        fault, trace = f"{type(error).__name__}: {str(error)[:300]}", traceback.format_exc()
    if shut and not fault:
        fault = f"touched {shut[0]}"
    os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)
    line = {"outcome": outcome, "kind": kind, "seconds": time.monotonic() - begun}
    return line | {"outcome": "fault", "fault": fault, "trace": trace[-3000:]} if fault else line


def _smallest(
    campaign: Campaign, edits: list[Edit], line: dict[str, Any], folder: Path, shut: list[Any]
) -> tuple[list[Edit], dict[str, Any]]:
    """Fewer edits with the same kind of fault: each is left out in turn."""
    for place in reversed(range(len(edits))):
        fewer = edits[:place] + edits[place + 1 :]
        again = judged(campaign, fewer, folder, shut)
        if again["outcome"] == "fault" and _kind(again["fault"]) == _kind(line["fault"]):
            edits, line = fewer, again
    return edits, line


@contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(event: str, args: tuple[Any, ...], place: Path, shut: list[Any]) -> None:
    """Notes what is written, removed or started outside of `place`."""
    if event == "open" and isinstance(args[0], str) and isinstance(args[2], int) and args[2] & WRITES:
        touched: Any = args[0]
    elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod"):
        touched = args[1] if event in ("os.rename", "os.symlink", "os.link") else args[0]
        if isinstance(args[-1], int) and args[-1] >= 0 and event != "os.mkdir" and not os.path.isabs(touched):
            return  # relative to an open folder, as rmtree does it: that folder was met before
    elif event == "socket.connect":
        if isinstance(args[1], tuple) and args[1][0] == "127.0.0.1":
            return
        shut.append(f"{event} {args[1]}")
        return
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        shut.append(f"{event} {args[0]}")
        return
    else:
        return
    path = os.path.abspath(os.fsdecode(touched)) if isinstance(touched, (str, bytes, Path)) else ""
    if path and not path.startswith((str(place), "/dev/")) and "__pycache__" not in path:
        shut.append(f"{event} {path}")
