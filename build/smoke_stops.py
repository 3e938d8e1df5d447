"""Checks of runs that end early: Ctrl-C, SIGTERM, a killed worker, a killed front end; and of how they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from smoke_box import WINDOWS, NotChecked, expect, until
from smoke_merge import World, events, resumed, same_merge

GONE = 5.0  # seconds within which a stopped run has left


def interrupt(world: World) -> str:
    """Ctrl-C, as a terminal sends it: exit code 130, no process left, and the same command finishes the run."""
    process, recipe = begin(world, "interrupted")
    os.killpg(process.pid, signal.SIGINT)
    return stopped(world, process, recipe, 130)


def terminate(world: World) -> str:
    """SIGTERM to the one process that was started, as `timeout` and containers do: exit code 143, else as Ctrl-C."""
    process, recipe = begin(world, "terminated")
    os.kill(process.pid, signal.SIGTERM)
    return stopped(world, process, recipe, 143)


def worker_killed(world: World) -> str:
    """The worker killed, as for want of memory: the front end says so, and the same command goes on."""
    process, recipe = begin(world, "worker-killed")
    os.kill(holder(recipe.with_suffix("")), signal.SIGKILL)
    world.box.end(process, GONE).expect(1, "was killed by SIGKILL during the stage", "run the same command to continue")
    return goes_on(world, recipe)


def front_killed(world: World) -> str:
    """The front end killed: the worker does not need it, `tmerge cancel` stops it, and the same command goes on."""
    box = world.box
    process, recipe = begin(world, "front-killed")
    run = recipe.with_suffix("")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    pid = holder(run)
    seen = len(events(run))
    expect(until(lambda: len(events(run)) > seen, GONE), "the worker has ended with its front end")
    box.run("--batch", recipe).expect(1, "is in use", str(pid))
    box.run("cancel", run).expect(0, "continues where it stopped")
    box.gone(GONE)
    box.run("watch", run).expect(130)
    for left in box.tmp.glob("_MEI*"):  # nobody was there to remove it
        shutil.rmtree(left)
    return goes_on(world, recipe)


def begin(world: World, name: str) -> tuple[subprocess.Popen[str], Path]:
    """Starts the short recipe and waits until it solves transport plans: the front end's process, and the recipe."""
    if WINDOWS:
        raise NotChecked("no signals on Windows")
    recipe = world.write(name, **world.pair_recipe())
    run = recipe.with_suffix("")
    process = world.box.start(world.box.command("--batch", recipe))
    solving = lambda: process.poll() is not None or any(line["type"] == "PairSolved" for line in events(run))  # noqa: E731
    expect(until(solving) and process.poll() is None, "the run has ended, or hangs, before it could be stopped")
    return process, recipe


def stopped(world: World, process: subprocess.Popen[str], recipe: Path, code: int) -> str:
    """Expects an orderly end within seconds, then that the run can go on."""
    done = world.box.end(process, GONE)
    done.expect(code, "stopped; the same command continues where it stopped")
    world.box.gone(1.0)
    expect(events(recipe.with_suffix(""))[-1]["type"] == "RunInterrupted", "the run does not know that it was stopped")
    return f"left after {done.seconds:.1f} s; {goes_on(world, recipe)}"


def goes_on(world: World, recipe: Path) -> str:
    """The same command again: finished pieces are kept, and the result is that of a run nobody has stopped."""
    run = recipe.with_suffix("")
    world.box.run("--batch", recipe).expect(0)
    kept = resumed(run)
    expect("extract_source" in kept, f"not resumed: kept {kept}")
    return f"{same_merge(run, world.short)} after {len(kept)} stages kept"


def holder(run: Path) -> int:
    """The pid of a run's worker."""
    return int(json.loads((run / "lock").read_text(encoding="utf-8"))["pid"])


CHECKS = {
    "interrupt": interrupt,
    "terminate": terminate,
    "worker-killed": worker_killed,
    "front-killed": front_killed,
}
