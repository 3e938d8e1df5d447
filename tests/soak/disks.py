"""Disks that are full, broken, closed or gone: injected at every write that Python sees, and real ones where a small
file system can be mounted. A run that meets one ends in a clear error, and equal once the disk is well again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.soak.judge import WRITES, dice_of
from tests.soak.runs import JOURNAL_LOST, Bench, Tally

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
CLEAR = ("StorageError", "ModelError", "DataError", "RunFolderError", "MemoryShortage")
IN_A_ROW = 6
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.copyfile")


def injected(bench: Bench, seed: int, wanted: int, until: float) -> Tally:
    """One write in the run folder or the cache fails, at a random place; then another one; then none."""
    tally = Tally("failing writes")
    places = _count(bench)
    tally.note = f"{places} places where a run writes"
    chain = 0
    while tally.done < wanted and time.monotonic() < until:
        dice, output = dice_of("disk", seed, chain), bench.fresh()
        chain += 1
        for _ in range(IN_A_ROW):
            code = bench.wait(bench.start(output, _failing(dice.randrange(places), dice.choice(ERRORS))))
            if not _told(bench, output, code, tally):
                break
        bench.finish(output, tally)
    return tally


def _told(bench: Bench, output: Path, code: int, tally: Tally) -> bool:
    """Counts one disturbance; whether the run may be disturbed again."""
    ending = bench.ending(output)
    tally.at(ending["stage"])
    if code == 0:  # what failed was not needed
        return False
    if code == JOURNAL_LOST or (code in (1, 2) and (ending["kind"] in CLEAR or ending["kind"].endswith("CheckError"))):
        tally.refused += 1
        return True
    log = (output.parent / "log").read_text("utf-8", "replace")[-1500:]
    tally.faults.append(f"no clear error but {code}, {ending}: {log}")
    return False


def _count(bench: Bench) -> int:
    output = bench.fresh()
    code = bench.wait(bench.start(output, _failing(-1, 0)))
    assert code == 0
    return int((output.parent / "writes").read_text())


def _failing(place: int, number: int) -> Callable[[Path], None]:
    """The hook that lets the write number `place` fail; -1: none, and how many there were is written down."""

    def hook(output: Path) -> None:
        seen, inside, counted = [0], (str(output), str(output.parent / "hf")), output.parent / "writes"

        def fail(path: Any) -> None:
            seen[0] += 1
            if seen[0] - 1 == place:
                raise OSError(number, os.strerror(number), str(path))

        def watch(event: str, args: tuple[Any, ...]) -> None:
            if (event == "open" and isinstance(args[2], int) and args[2] & WRITES) or event in CHANGES:
                path = os.path.abspath(os.fsdecode(args[0])) if isinstance(args[0], (str, bytes, Path)) else ""
                if path.startswith(inside):
                    fail(path)

        sys.addaudithook(watch)
        for name in ("write", "fsync"):
            setattr(os, name, _through(getattr(os, name), lambda: fail(output)))
        if place < 0:
            leave = os._exit

            def told(code: int) -> None:
                counted.write_text(str(seen[0]))
                leave(code)

            os._exit = told  # type: ignore[assignment]

    return hook


def _through(function: Any, before: Callable[[], None]) -> Any:
    def called(*args: Any) -> Any:
        if args[0] > 2:  # not what is printed
            before()
        return function(*args)

    return called


def mounted(bench: Bench, seed: int, wanted: int, until: float) -> list[Tally]:
    """A small tmpfs: too small, without inodes, read-only, taken away; made well again each time."""
    tallies = []
    for name, disturb in (("full disk", _full), ("no inodes", _inodes), ("read-only", _read_only), ("vanished", _gone)):
        tally = Tally(name)
        for turn in range(wanted):
            if time.monotonic() >= until:
                break
            output = bench.fresh()
            output.mkdir(parents=True)
            if not _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(output)):
                tally.note = "not tried: no file system can be mounted here"
                break
            try:
                disturb(bench, output, tally, dice_of(name, seed, turn))
                bench.finish(output, tally)
            finally:
                subprocess.run(["umount", "-l", str(output)], check=False, capture_output=True)
        tallies.append(tally)
    return tallies


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _full(bench: Bench, output: Path, tally: Tally, dice: Random) -> None:
    sizes = sorted(dice.randint(20, 1500) for _ in range(4))
    _less_and_less(bench, output, tally, [f"size={size}k" for size in sizes], "size=64m")


def _inodes(bench: Bench, output: Path, tally: Tally, dice: Random) -> None:
    counts = sorted(dice.randint(6, 60) for _ in range(3))
    _less_and_less(bench, output, tally, [f"nr_inodes={count}" for count in counts], "nr_inodes=100000")


def _less_and_less(bench: Bench, output: Path, tally: Tally, short: Sequence[str], enough: str) -> None:
    """A run under each of the limits, until one is not told clearly; then there is room again."""
    for limit in short:
        _mount("-o", f"remount,{limit}", str(output))
        if not _told(bench, output, bench.wait(bench.start(output)), tally):
            break
    _mount("-o", f"remount,{enough}", str(output))


def _read_only(bench: Bench, output: Path, tally: Tally, dice: Random) -> None:
    child = bench.start(output)
    time.sleep(dice.uniform(0.0, bench.seconds))
    _mount("-o", "remount,ro", str(output))
    closed = bench.wait(child)
    _mount("-o", "remount,rw", str(output))
    _told(bench, output, closed, tally)


def _gone(bench: Bench, output: Path, tally: Tally, dice: Random) -> None:
    """Taken away while in use; what was there comes back, as a network disk does."""
    child = bench.start(output)
    time.sleep(dice.uniform(0.0, bench.seconds))
    aside = output.parent / "aside"
    aside.mkdir()
    moved = _mount("--bind", str(output), str(aside)) and not subprocess.run(["umount", "-l", str(output)]).returncode
    code = bench.wait(child)
    if moved:
        _mount("--bind", str(aside), str(output))
        subprocess.run(["umount", "-l", str(aside)], check=False)
    _told(bench, output, code, tally)
