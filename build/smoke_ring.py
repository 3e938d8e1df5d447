"""Runs many recipes in one process: `python build/smoke_ring.py RECIPES.json` from source, and inside the engine.

A frozen program imports nothing from outside. It does open the door that Python's multiprocessing starts its children
by: it unpickles what comes through a pipe. `inside` sends this file through it.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smoke_box import Box, Command

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def run(path: str) -> None:
    """Runs the recipes of a JSON list; a line for each: null, or the traceback of what went wrong."""
    import gc

    from tmerge_tui.engine import pipeline
    from tmerge_tui.recipe import make_recipe
    from tmerge_tui.run_folder import RunDir

    gc.freeze()  # a merge collects garbage several times, and would look at all of torch each time
    with open(path, encoding="utf-8") as file:
        recipes = json.load(file)
    for recipe in recipes:
        wrong = None
        try:
            made = make_recipe(recipe)
            pipeline.run(made, RunDir.create(made.output), lambda event: None)
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps(wrong), flush=True)


def outside(box: Box, recipes: Path, log: Path) -> subprocess.Popen[str]:
    """Starts `run` from source."""
    return _start(box.python(__file__, recipes, **OFFLINE), log)


def inside(box: Box, engine: Path, recipes: Path, log: Path) -> subprocess.Popen[str]:
    """Starts `run` inside the engine."""
    return program(box, engine, f"{Path(__file__).read_text(encoding='utf-8')}\nrun({str(recipes)!r})\n", log)


def program(box: Box, engine: Path, text: str, log: Path) -> subprocess.Popen[str]:
    """Starts any Python inside the engine."""
    reader, writer = os.pipe()
    arguments = ("--multiprocessing-fork", f"tracker_fd={reader}", f"pipe_handle={reader}")
    process = _start(box.command(*arguments, program=engine, env=box.environment(**OFFLINE)), log, pass_fds=[reader])
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump({}, pipe)  # how to prepare: nothing
        pickle.dump(_Text(f"{text}\nimport os\nos._exit(0)\n"), pipe)
    return process


def _start(command: Command, log: Path, **more: Any) -> subprocess.Popen[str]:
    with open(log, "wb") as errors:
        return subprocess.Popen(
            command.argv,
            env=command.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            **more,
        )


class _Text:
    """Unpickles by being run."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, dict[str, str]]]:
        return exec, (self.text, {"__name__": "inside"})


if __name__ == "__main__":
    run(sys.argv[1])
