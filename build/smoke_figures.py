"""Figures of the binary: how large it is and how long it takes, medians of five, measured on this machine as it is.

Times are told beside the load of the machine and, where the source does the same, beside the source's.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import pty
import re
import select
import shutil
import statistics
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from smoke_box import Box, Command, Failed, expect
from smoke_merge import World

TIMES = 5
HOME = b"Start"  # on the wizard's first screen
WAIT = 60.0


def measure(world: World, file: Path) -> None:
    """Measures, prints a table and writes the figures as JSON. Raises Failed."""
    box = world.box
    world.engine  # noqa: B018
    before = os.getloadavg()
    ways = {
        "seconds to --version": lambda: box.finish(bare(box, "--version")).expect(0).seconds,
        "seconds to --version, from source": lambda: box.finish(box.source("--version")).expect(0).seconds,
        "seconds to the first screen": lambda: first_screen(box, bare(box)),
        "seconds to the first screen, from source": lambda: first_screen(box, box.source()),
        "seconds to the first screen, first run ever": lambda: fresh(box, first_ever),
        "seconds to unpack the engine": lambda: fresh(box, unpacking),
        **demos(world),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TIMES):  # by turns, so that what else the machine does falls on all of them
        for name, way in ways.items():
            taken[name].append(way())
            print(".", end="", flush=True)
    print()
    medians = {name: statistics.median(values) for name, values in taken.items()}
    medians["demo, binary against source"] = (
        medians["seconds of the demo"] / medians["seconds of the demo, from source"]
    )
    engine = [path for path in world.engine.parent.rglob("*") if not path.is_dir()]
    medians["megabytes of the binary"] = box.program.stat().st_size / 1e6
    medians["megabytes of the unpacked engine"] = sum(path.lstat().st_size for path in engine) / 1e6
    for name, value in medians.items():
        spread = f"   {min(taken[name]):.2f} to {max(taken[name]):.2f}" if name in taken else ""
        print(f"{name:<46} {value:8.2f}{spread}")
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": box.run("--version").out.strip(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
        "load before and after": [before, os.getloadavg()],
        "times": TIMES,
        "medians": medians,
        "taken": taken,
    }
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def bare(box: Box, *arguments: str | Path, home: Path | None = None) -> Command:
    """The binary without the fence, which takes time of its own."""
    return threaded(Command([str(box.program), *map(str, arguments)], box.environment(home)))


def threaded(command: Command) -> Command:
    """With as many threads as it likes."""
    return Command(command.argv, {name: value for name, value in command.env.items() if name != "OMP_NUM_THREADS"})


def demos(world: World) -> dict[str, Callable[[], float]]:
    """The demo by the binary and from source, each time in a new folder."""
    box = world.box

    def run(command: Callable[..., Command]) -> float:
        folder = box.work / "figures"
        shutil.rmtree(folder, ignore_errors=True)
        return box.finish(threaded(command("demo", "--output", folder))).expect(0).seconds

    return {
        "seconds of the demo": lambda: run(functools.partial(bare, box)),
        "seconds of the demo, from source": lambda: run(box.source),
    }


def fresh(box: Box, way: Callable[[Box, Path], float]) -> float:
    """A measurement in a home where tmerge has never run."""
    home = box.new_home()
    try:
        return way(box, home)
    finally:
        box.gone(WAIT)
        shutil.rmtree(home)


def first_ever(box: Box, home: Path) -> float:
    return first_screen(box, bare(box, home=home))


def unpacking(box: Box, home: Path) -> float:
    """From the first word about the unpacking to its last, as the user sees it."""
    process = box.start(bare(box, "plan", "missing.yaml", home=home))
    assert process.stderr is not None
    began = 0.0
    for line in process.stderr:
        if "unpacking" in line:
            began = time.monotonic()
        elif re.fullmatch(r"\s*done\s*", line):
            taken = time.monotonic() - began
            process.communicate()
            expect(began, "done with an unpacking that nobody has announced")
            return taken
    raise Failed("the engine was not unpacked")


def first_screen(box: Box, command: Command) -> float:
    """Seconds until the wizard's first screen is in the terminal; then leaves it by ctrl+q."""
    began = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(box.work)
        os.execve(command.argv[0], command.argv, command.env)
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        read(terminal, HOME)
        taken = time.monotonic() - began
        time.sleep(0.3)
        os.write(terminal, b"\x11")
        read(terminal, None)
        return taken
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        expect(status == 0, f"the wizard has left with status {status}")


def read(terminal: int, wanted: bytes | None) -> None:
    """Reads until `wanted` has come, or to the end. Raises Failed when neither happens."""
    seen, deadline = b"", time.monotonic() + WAIT
    while wanted is None or wanted not in seen:
        if not select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise Failed(f"nothing more came: {seen[-500:]!r}")
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            data = b""
        if not data:
            expect(wanted is None, f"the wizard has ended: {seen[-500:]!r}")
            return
        seen += data
