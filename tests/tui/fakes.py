"""A run without an engine: its events, an event file, and a pipeline that plays them (TMERGE_PIPELINE)."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from tests.engine.report.sample_results import make_results
from tmerge_tui.events import (
    Artifact,
    Checked,
    Convergence,
    Emit,
    Event,
    HeatMap,
    LayerPlanSolved,
    Logged,
    Metric,
    PairSolved,
    ResourceSample,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgressed,
    StageStarted,
    Warned,
    encode,
    pack_cells,
)
from tmerge_tui.recipe import Recipe, dump_recipe, make_recipe
from tmerge_tui.run_folder import RunDir

L, M = 4, 6
SIDES = ("qkv.in", "q.out", "k.out", "v.out", "o.in", "o.out")
STAGES = (
    ("check", "Check models, text and room", 0.02),
    ("extract_source", "Read activations of the source", 0.30),
    ("measure_source", "Measure the source", 0.05),
    ("extract_target", "Read activations of the target", 0.12),
    ("transport", "Solve transport plans", 0.20),
    ("fuse", "Carry weights through the plans", 0.12),
    ("fold", "Write the merged model", 0.05),
    ("evaluate", "Measure result and placebos", 0.13),
    ("report", "Write the report", 0.01),
)
MB = 1 << 20


def heat(l: int, m: int, side: str, rows: int = 48, columns: int = 64) -> HeatMap:
    """A band from corner to corner with a few bright cells, as an aligned pair has it."""
    made = random.Random(l * 100 + m)
    cells = bytearray()
    for r in range(rows):
        for c in range(columns):
            distance = abs(r / rows - c / columns)
            cells.append(min(int(255 * math.exp(-(distance**2) * 60) * made.uniform(0.2, 1.0)), 255))
    return HeatMap(f"Q l={l} m={m} {side}", l, m, side, rows, columns, -1.2, 1.4, pack_cells(bytes(cells)))


def events(folder: str = "/runs/demo", until: str = "") -> Iterator[Event]:
    """A whole run, or one up to the middle of stage `until` when that is given."""
    stages = [{"name": name, "label": label, "weight": weight} for name, label, weight in STAGES]
    yield RunStarted(folder, os.getpid(), "cpu", {"tmerge": "0.1.0", "torch": "2.13.0"}, stages)
    facts = {"layers": M, "hidden": 192, "name": "source-llama", "parameters": 2_828_736}
    yield Checked(facts, {**facts, "layers": L, "hidden": 96, "name": "target-qwen2"}, ["q", "k", "v", "o"], [])
    for name, label, _ in STAGES:
        total, unit = {"transport": (L * M * len(SIDES), "pairs")}.get(name, (40, "samples"))
        yield StageStarted(name, label, total, unit)
        yield Logged("info", f"{label}: {total} {unit}")
        done = 0
        for done in range(1, total + 1):
            if name == "transport":
                yield from _pair(done - 1)
            if name == until and done > total * 0.6:
                return
            if done % 4 == 0:
                yield StageProgressed(name, done, total, unit, 37.5, "layer 1")
        yield ResourceSample(187.0, 640 * MB, 16_000 * MB, disk_free=80_000 * MB)
        if name == "extract_source":
            yield Warned("calibration", "8 duplicate samples left out")
        if name == "transport":
            plan = [[1 / (1 + 4 * abs(r * M / L - c)) for c in range(M)] for r in range(L)]
            for kind in ("q", "k", "v", "o"):
                yield LayerPlanSolved(kind, plan)
        if name == "evaluate":
            yield Metric("bits_per_byte", "target", 2.1706, "bits/byte")
            yield Metric("bits_per_byte", "fused", 2.1702, "bits/byte", 0.1, -0.0004, -0.0008, 0.0001)
        yield StageFinished(name, 1.25, "done")
    yield Artifact("report", f"{folder}/report.html", 120_000)
    yield RunFinished("Fusion does not beat its placebos", 12.5, f"{folder}/model", f"{folder}/report.html")


def _pair(number: int) -> Iterator[Event]:
    l, rest = divmod(number, M * len(SIDES))
    side, m = SIDES[rest // M], rest % M
    cost = 0.4 + 0.08 * abs(l * M / L - m) + 0.01 * (number % 7)
    yield PairSolved(l, m, side, cost, 34, 8e-7, 3e-9, True, "fast")
    if number % 5 == 0:
        yield heat(l, m, side)
        yield Convergence(l, m, side, [10 ** (-0.2 * i) for i in range(32)])


def write_run(path: Path, until: str = "", start: float = 1_700_000_000.0) -> RunDir:
    """A run folder with its event file, a tenth of a second between events; report.json when it is whole."""
    run = RunDir.create(path)
    recipe = make_recipe(
        {
            "source": "org/source-llama",
            "target": "org/target-qwen2",
            "calibration": {"path": "t.txt"},
            "output": str(path),
        }
    )
    run.recipe.write_text(dump_recipe(recipe))
    lines = [encode(event, i, start + 0.1 * i) for i, event in enumerate(events(str(path), until))]
    run.events.write_text("\n".join(lines) + "\n")
    if not until:
        run.save_json(run.path / "report.json", make_results())
    return run


def play(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """The pipeline: about half a second, or TMERGE_FAKE_PAUSE seconds between events."""
    pause = float(os.environ.get("TMERGE_FAKE_PAUSE", "0"))
    for event in events(str(run.path)):
        if isinstance(event, RunFinished):
            run.save_json(run.path / "report.json", make_results())
        emit(event)
        if pause:
            time.sleep(pause)
