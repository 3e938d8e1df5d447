"""The transport stage in this process and on a Ray cluster of this machine: `python -m tests.benchmarks.cluster`.

The same layers, in turns: on one thread, on all of them, and as Ray tasks of one thread each. Of a stage on Ray the
benchmark says how long the cluster took to start, to solve (from its first task to its last result) and to leave.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict

import torch

from tests.engine.optimal_transport.problems import make_activations
from tmerge_tui.engine.methods.transport_merge.feature_plans import transport
from tmerge_tui.engine.methods.transport_merge.ray_solver import on_ray
from tmerge_tui.events import Event, Logged, PairSolved
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import make_recipe
from tmerge_tui.run_folder import RunDir

KINDS = ("q", "k", "v", "o")
RECIPE = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": "unused", "device": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=(4, 8), help="of target and source")
    parser.add_argument("--width", type=int, nargs=2, default=(1024, 2048), help="of target and source")
    parser.add_argument("--samples", type=int, default=512, help="T")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    target, source = (
        make_activations(role, [KINDS] * layers, width, width, chosen.samples, seed)
        for seed, (role, layers, width) in enumerate(
            zip(("target", "source"), chosen.layers, chosen.width, strict=True), start=1
        )
    )
    cores = os.cpu_count() or 1
    pairs = 6 * chosen.layers[0] * chosen.layers[1]
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(chosen.repeats):
        for name, threads in (("local, 1 thread", 1), (f"local, {cores} threads", cores), ("ray", cores)):
            torch.set_num_threads(threads)
            marks: dict[str, float] = {}

            def emit(event: Event, marks: dict[str, float] = marks) -> None:
                if isinstance(event, Logged):
                    marks["joined"] = time.monotonic()
                if isinstance(event, PairSolved):
                    marks["last"] = time.monotonic()

            recipe = make_recipe({**RECIPE, "transport": {"executor": "ray" if name == "ray" else "local"}})
            solver = on_ray(recipe, emit) if name == "ray" else None
            with tempfile.TemporaryDirectory() as folder:
                run = RunDir.create(f"{folder}/run")
                start = time.monotonic()
                transport(Pair(target=target, source=source), KINDS, recipe.transport, run, emit, "cpu", solver)
                end = time.monotonic()
            times[name].append(end - start)
            if name == "ray":
                times["  start"].append(marks["joined"] - start)
                times["  solve"].append(marks["last"] - marks["joined"])
                times["  leave"].append(end - marks["last"])
    print(f"{pairs} plans of {chosen.width[0]} x {chosen.width[1]}, T = {chosen.samples}; medians of {chosen.repeats}")
    for name, found in times.items():
        print(f"{name:<18} {statistics.median(found):6.1f} s", flush=True)


if __name__ == "__main__":
    main()
