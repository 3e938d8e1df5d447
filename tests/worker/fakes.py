"""Pipelines that stand in for the engine: TMERGE_PIPELINE=tests.worker.fakes:<name>."""

from __future__ import annotations

import ctypes
import os
import time

from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import CheckError, NumericsError
from tmerge_tui.events import Emit, Metric, PairSolved, RunFinished, RunStarted, StageFinished, StageStarted, Warned
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir

LONG = 600  # seconds: longer than any test

STAGES = [
    {"name": "extract", "label": "Reading activations", "weight": 0.25},
    {"name": "transport", "label": "Solving transport", "weight": 0.75},
]


def _start(run: RunDir, emit: Emit) -> None:
    emit(RunStarted(str(run.path), os.getpid(), "cpu", {}, STAGES))


def whole(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Everything a short run says."""
    _start(run, emit)
    with Progress(emit, "extract", "Reading activations", 4, "samples") as progress:
        for _ in range(4):
            progress.advance()
    emit(Warned("data", "two samples were empty"))
    with Progress(emit, "transport", "Solving transport", 2, "pairs") as progress:
        for m in range(2):
            emit(PairSolved(0, m, "qkv.in", 0.5 + m, 12, 1e-7, 1e-10, True, "fast"))
            progress.advance()
    emit(Metric("bits_per_byte", "fused", 2.1, "bits per byte", 0.1, -0.01, -0.02, 0.001))
    emit(
        RunFinished(
            f"seed {recipe.seed}, alpha {recipe.fusion.alpha[0]}", 0.1, str(run.model), f"{run.path}/report.html"
        )
    )


def lingers(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Has said its last word and does not leave before the file `leave` is there."""
    whole(recipe, run, emit)
    while not (run.path / "leave").exists():
        time.sleep(0.01)


def chatty(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Prints from Python and from C in between."""
    print('{"v":1,"type":"RunFailed"}')
    os.write(1, b"straight to the descriptor")
    whole(recipe, run, emit)
    os.write(2, b"and to the other one\n")


def sleeps(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Sits in one long call, the interpreter free."""
    _start(run, emit)
    emit(StageStarted("transport", "Solving transport", 512, "pairs"))
    time.sleep(LONG)


def deaf(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """One long tensor operation on the main thread: no bytecode runs there until it is over."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.rand(4000, 4000)
    _start(run, emit)
    emit(StageStarted("transport", "Solving transport", 512, "pairs"))
    torch.linalg.svd(matrix)
    emit(StageFinished("transport", 0.0, "done"))


def holds_interpreter(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """A long C call that never lets another thread run, so not even the signal thread hears."""
    _start(run, emit)
    emit(StageStarted("transport", "Solving transport", 512, "pairs"))
    ctypes.PyDLL(None).sleep(LONG)


def segfaults(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    _start(run, emit)
    emit(StageStarted("transport", "Solving transport", 512, "pairs"))
    ctypes.string_at(0)


def breaks(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    _start(run, emit)
    raise KeyError("layers")


def numerics(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    _start(run, emit)
    raise NumericsError("NaN in layer 3, k.out of the source", "finite activations", "use dtype: float32")


def refused(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    raise CheckError(["source: no such folder", "fusion.k: 128 is more than 64 rows"], hint="correct both")


def starves(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    raise MemoryError


def forgets(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    _start(run, emit)
