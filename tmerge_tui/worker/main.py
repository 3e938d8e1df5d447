"""The worker process: `tmerge _worker RUN` runs the recipe of a run folder and writes its events.

Signals. A Python handler runs only between bytecodes, so it is deaf during a long tensor operation. SIGTERM and SIGINT
are therefore blocked in every thread and awaited by one thread of their own, which writes the last event and ends the
process at once. SIGHUP is ignored: a dropped connection does not stop a run. Windows has no such signals: there the
thread waits for a file in the run folder. What libraries print goes to worker.log.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable

import psutil

from tmerge_tui.engine.resources import Sampler
from tmerge_tui.errors import Interrupted, MemoryShortage, TmergeError
from tmerge_tui.events import Emit, Logged, RunFailed, RunFinished, RunInterrupted
from tmerge_tui.hub.errors import scrub, secrets
from tmerge_tui.recipe import Recipe, load_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.system import await_stop, hold_stop_signals, write_utf8
from tmerge_tui.worker import lock, trust
from tmerge_tui.worker.journal import Journal

PIPELINE = "tmerge_tui.engine.pipeline:run"
COMPARISON = "tmerge_tui.engine.comparison:run"  # of a recipe with compare_methods


def main(folder: str) -> int:
    """Runs the recipe of `folder`; the exit code: 0, 1, 2, or 130 when stopped by a signal."""
    hold_stop_signals()
    write_utf8()
    faulthandler.enable()
    try:
        run = RunDir.open(folder)
        lock.acquire(run)
    except TmergeError as error:  # not the writer of this run: worker.log has to do
        print(error, file=sys.stderr)
        return error.exit_code
    try:
        journal = Journal(run.events, secrets())
        threading.Thread(target=_await_stop, args=(journal, run), name="signals", daemon=True).start()
        journal.emit(Logged("debug", f"worker {os.getpid()} started"))
        code = _run(run, journal)
        journal.close()
        return code
    finally:
        lock.release(run)


def _run(run: RunDir, journal: Journal) -> int:
    try:
        recipe = load_recipe(run.recipe)
        trust.refuse(recipe)
        with Sampler(journal.emit, run.path):
            _pipeline(recipe)(recipe, run, journal.emit)
        if not isinstance(journal.final, RunFinished):
            raise RuntimeError("the pipeline returned without RunFinished")
        return 0
    except BaseException as error:
        failure = describe(error)
        print(failure.details, file=sys.stderr)
        journal.emit(failure)
        return failure.exit_code


def describe(error: BaseException) -> RunFailed:
    """The event that tells a user what went wrong; the traceback is only a detail."""
    details = scrub("".join(traceback.format_exception(error)))
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("the run was interrupted")
    if isinstance(error, MemoryError):
        error = MemoryShortage(
            "out of memory", "room for one layer and the activations", "lower calibration.batch_size or set memory"
        )
    if isinstance(error, TmergeError):
        return RunFailed(kind, error.found, error.expected, error.hint, error.exit_code, details)
    hint = "this is a bug in tmerge: please report it with the end of worker.log; finished pieces are kept"
    return RunFailed(kind, f"unexpected {kind}: {scrub(str(error))}", "", hint, 1, details)


def _pipeline(recipe: Recipe) -> Callable[[Recipe, RunDir, Emit], None]:
    """The engine's `run` of such a recipe. Test hook: TMERGE_PIPELINE=module:function puts another in its place."""
    usual = COMPARISON if recipe.compare_methods else PIPELINE
    module, _, function = os.environ.get("TMERGE_PIPELINE", usual).partition(":")
    return getattr(importlib.import_module(module), function)


def _await_stop(journal: Journal, run: RunDir) -> None:
    how = await_stop(run.stop)
    try:
        journal.emit_last(RunInterrupted(how), patience=0.5)
        for child in psutil.Process().children(recursive=True):  # they inherited the mask: no SIGTERM would reach them
            child.kill()
        lock.release(run)
    finally:  # with a full disk too
        os._exit(0 if isinstance(journal.final, RunFinished) else 130)
