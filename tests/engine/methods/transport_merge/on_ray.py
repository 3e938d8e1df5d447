"""The transport stage on Ray as the tests of the cluster ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.engine.methods.transport_merge.clustered import KINDS, models
from tmerge_tui.engine.methods.transport_merge import ray_solver
from tmerge_tui.engine.methods.transport_merge.feature_plans import transport
from tmerge_tui.events import Event
from tmerge_tui.recipe import Recipe, Transport, make_recipe
from tmerge_tui.run_folder import RunDir

RECIPE = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": "unused"}


def recipe(device: str = "cpu", address: str = "", **options: Any) -> Recipe:
    asked = {"executor": "ray", "ray_address": address, **options}
    return make_recipe({**RECIPE, "device": device, "transport": asked})


def solve(run: RunDir, recipe: Recipe | None = None, watch: Callable[[Event], None] | None = None) -> list[Event]:
    """The stage on Ray, or here without a recipe."""
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if watch is not None:
            watch(event)

    options = recipe.transport if recipe else Transport()
    transport(models(), KINDS, options, run, emit, "cpu", recipe and ray_solver.on_ray(recipe, emit))
    return events


def pieces(run: RunDir) -> dict[str, bytes]:
    return {piece.name: piece.read_bytes() for piece in run.state.glob("[!.]*")}  # a killed run leaves a .part


def only(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]
