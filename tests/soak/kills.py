"""kill -9 at random moments over all stages; and what else happens to processes: two of them, a clock, a pause."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from random import Random

from tests.soak.judge import dice_of
from tests.soak.runs import Bench, Tally
from tmerge_tui import events
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import lock

IN_A_ROW = 8  # kills of one run before it may end
REFUSED = 1  # exit code of RunFolderError


def kills(bench: Bench, seed: int, wanted: int, until: float) -> Tally:
    """Each run is killed again and again, at a moment of a share of its time that grows, and then compared."""
    tally = Tally("kill -9")
    chain = 0
    while tally.done < wanted and time.monotonic() < until:
        dice, output = dice_of("kill", seed, chain), bench.fresh()
        chain += 1
        stages = _stages(bench)
        for turn in range(IN_A_ROW):
            child = bench.start(output, _at_stage(dice, stages, turn)) if turn % 2 else bench.start(output)
            if not turn % 2:
                time.sleep(dice.uniform(0.0, bench.seconds * (turn + 2) / IN_A_ROW))
                os.kill(child, signal.SIGKILL)
            code = bench.wait(child)
            if code == -signal.SIGKILL:
                tally.at(bench.ending(output)["stage"])
            elif code == 0:
                break
            else:
                tally.faults.append(f"killed before, it ended with {code}: {bench.ending(output)}")
                break
        bench.finish(output, tally)
    return tally


def _stages(bench: Bench) -> list[str]:
    lines = (bench.straight / "events.jsonl").read_text("utf-8").splitlines()
    return [line["stage"] for line in map(json.loads, lines) if line["type"] == "StageStarted"]


def _at_stage(dice: Random, stages: list[str], turn: int):  # type: ignore[no-untyped-def]
    """Kills itself at an event of a stage; later turns prefer later stages, which earlier ones keep from being met."""
    low = len(stages) * (turn - 1) // IN_A_ROW
    victim, skip = dice.choice(stages[low:]), dice.randrange(3)

    def hook(output: Path) -> None:
        from tmerge_tui.worker.journal import Journal

        write, seen = Journal.emit, [0, 0]

        def emit(self: Journal, event: events.Event) -> None:
            write(self, event)
            seen[0] = event.stage == victim if isinstance(event, events.StageStarted) else seen[0]
            seen[1] += bool(seen[0])
            if seen[1] > skip:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.emit = emit  # type: ignore[method-assign]

    return hook


def processes(bench: Bench, seed: int, until: float, pause: float) -> list[Tally]:
    """Two workers, a lock of another host, a clock that is set back, a pause of `pause` seconds, text that changes."""
    tallies = []
    for name, disturb in (("two workers", _two), ("lock of another host", _other_host), ("clock set back", _clock),
                          ("suspended", _suspended), ("text changes after the check", _text)):  # fmt: skip
        tally = Tally(name)
        if time.monotonic() < until:
            output = bench.fresh()
            disturb(bench, output, tally, dice_of(name, seed, 0), pause)
            bench.finish(output, tally)
        tallies.append(tally)
    return tallies


def _two(bench: Bench, output: Path, tally: Tally, dice: Random, pause: float) -> None:
    """One of them writes, the other says that the folder is in use."""
    children = [bench.start(output) for _ in range(3)]
    codes = sorted(bench.wait(child) for child in children)
    tally.done, tally.refused = 3, codes.count(REFUSED)
    if codes != [0, REFUSED, REFUSED]:
        tally.faults.append(f"three workers ended with {codes}")


def _other_host(bench: Bench, output: Path, tally: Tally, dice: Random, pause: float) -> None:
    """Of one whose events have just come it is respected; of one that has been silent it is taken over."""
    run = RunDir.create(output)
    run.lock.write_text(json.dumps({"pid": 1, "started": 0.0, "host": "elsewhere"}))
    run.events.touch()
    tally.done = 2
    code = bench.wait(bench.start(output))
    tally.refused = int(code == REFUSED)
    if code != REFUSED:
        tally.faults.append(f"the lock of a living host was not respected: {code}")
    silent = time.time() - 2 * lock.SILENCE
    os.utime(run.events, (silent, silent))


def _clock(bench: Bench, output: Path, tally: Tally, dice: Random, pause: float) -> None:
    """An hour back after a while, then a day ahead."""

    def hook(path: Path) -> None:
        real, begun = time.time, time.monotonic()
        turn = bench.seconds / 3

        def told() -> float:
            gone = time.monotonic() - begun
            return real() - (3600 if turn < gone < 2 * turn else -86400 if gone >= 2 * turn else 0)

        time.time = told

    tally.done = 1
    code = bench.wait(bench.start(output, hook))
    if code:
        tally.faults.append(f"it ended with {code}: {bench.ending(output)}")


def _suspended(bench: Bench, output: Path, tally: Tally, dice: Random, pause: float) -> None:
    child = bench.start(output)
    for _ in range(2):
        time.sleep(dice.uniform(0.1, bench.seconds / 3))
        os.kill(child, signal.SIGSTOP)
        time.sleep(pause)
        os.kill(child, signal.SIGCONT)
        tally.done += 1
    code = bench.wait(child)
    if code:
        tally.faults.append(f"it ended with {code}: {bench.ending(output)}")


def _text(bench: Bench, output: Path, tally: Tally, dice: Random, pause: float) -> None:
    """What was checked is what is read: other text later changes nothing of this run."""
    file = Path(bench.pair["calibration"]["path"])
    before, kept = file.read_bytes(), file.stat()

    def hook(path: Path) -> None:
        from tmerge_tui.worker.journal import Journal

        write = Journal.emit

        def emit(self: Journal, event: events.Event) -> None:
            write(self, event)
            if isinstance(event, events.StageFinished) and event.stage == "check":
                file.write_text("other text\n" * 200)

        Journal.emit = emit  # type: ignore[method-assign]

    tally.done = 1
    code = bench.wait(bench.start(output, hook))
    file.write_bytes(before)
    os.utime(file, (kept.st_atime, kept.st_mtime))
    if code:
        ending = bench.ending(output)
        tally.refused = int(ending["kind"] == "DataError")
        if ending["kind"] != "DataError":
            tally.faults.append(f"it ended with {code}: {ending}")
