"""The transport stage alone, as a worker's pipeline.

TMERGE_PIPELINE=tests.engine.methods.transport_merge.clustered:align
"""

from __future__ import annotations

import os
import time
from typing import Any

from tests.engine.optimal_transport.problems import FakeActivations, make_activations
from tmerge_tui.engine.methods.transport_merge import ray_solver
from tmerge_tui.engine.methods.transport_merge.feature_plans import transport
from tmerge_tui.events import Emit, RunFinished, RunStarted
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir

KINDS = ("q", "k", "v", "o")


def models() -> Pair[FakeActivations]:
    """12 pieces of 3 pairs each."""
    target = make_activations("target", [KINDS] * 2, hidden=10, inner=12, seed=1)
    return Pair(target=target, source=make_activations("source", [KINDS] * 3, hidden=18, inner=20, seed=2))


def align(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """On Ray, tasks wait once two pieces more have been written, until the run is stopped: so there is a middle."""
    solve, state, had = ray_solver.work, run.state, len(list(run.state.iterdir()))

    def half(*args: Any) -> Any:
        while len(list(state.iterdir())) >= had + 2:
            time.sleep(0.05)
        return solve(*args)

    ray_solver.work = half
    emit(RunStarted(str(run.path), os.getpid(), recipe.device, {}, [], any(run.state.iterdir())))
    solver = ray_solver.on_ray(recipe, emit) if recipe.transport.executor == "ray" else None
    transport(models(), KINDS, recipe.transport, run, emit, "cpu", solver)
    emit(RunFinished("aligned", 0.0, str(run.model), ""))
