"""Several merge methods on one pair and text (`compare_methods`), each at its best strength beside its own placebos.

    for each method: check -> its own stages -> strength -> evaluate;  then the page, and the best one's result

One run folder: activations are read once for all methods, target and source are measured once, and running again
computes what is missing. Strengths, and which method is best, are chosen on validation text; the hold-out only says
what came of it. A method that refuses the pair or fails is a row with its reason. The best method then runs as any
other, from the pieces that are there: model/ and report.html are its.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from tmerge_tui.engine import pipeline
from tmerge_tui.engine.evaluation.holdout import evaluate
from tmerge_tui.engine.methods.registry import METHODS
from tmerge_tui.engine.pipeline import CHECK, EVALUATE, STRENGTH, Merged, of_source, of_target
from tmerge_tui.engine.progress import Log, Progress
from tmerge_tui.engine.report.collect import versions
from tmerge_tui.engine.report.comparison import write_comparison
from tmerge_tui.engine.report.verdict import judge
from tmerge_tui.engine.resources import peaks
from tmerge_tui.errors import CheckError, Interrupted, ProblemsError, RunFolderError, StorageError, TmergeError
from tmerge_tui.events import (
    Artifact,
    Emit,
    Event,
    Metric,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgressed,
    StageStarted,
    Warned,
)
from tmerge_tui.models.forward import release
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir, key

RESULT = "result"
OF_EVERYONE = ("extract_source", "measure_source", "extract_target")  # whose pieces one method makes for all
Row = dict[str, Any]


def run(recipe: Recipe, run: RunDir, emit: Emit) -> None:
    """Runs a recipe with `compare_methods` into its run folder, from RunStarted to RunFinished.

    Raises CheckError when no method can run, with the reasons of all; what the disk raises; and what the best method's
    own run raises once the page is written.
    """
    began, log = time.monotonic(), Log(emit)
    stages = [{"name": name, "label": label, "weight": share} for name, label, share in stages_of(recipe)]
    log(RunStarted(str(run.path), os.getpid(), recipe.device, versions(), stages, any(run.state.iterdir())))
    times: dict[str, dict[str, float]] = {}
    rows = [_tried(name, recipe, run, log, times) for name in recipe.compare_methods]
    done = [row for row in rows if row["reason"] is None]
    if not done:
        raise CheckError([f"{row['method']}: {row['reason']}" for row in rows], "no method can run; nothing was merged")
    best = min(done, key=lambda row: row["validation"])["method"]
    results = {"version": 1, "methods": rows, "best": best, "recipe": recipe.model_dump(mode="json")}
    headline = write_comparison(results, run)
    for name in ("compare.html", "compare.md", "compare.json"):
        log(Artifact("report", str(run.path / name), (run.path / name).stat().st_size))
    output = _result(recipe.model_copy(update={"method": best}), run, log)
    log(RunFinished(headline, time.monotonic() - began, output, str(run.path / "compare.html")))


def stages_of(recipe: Recipe) -> list[tuple[str, str, float]]:
    """What a comparison announces, in order; the shares sum to 1."""
    found = [
        (f"{name}.{stage}", label, share)
        for name in recipe.compare_methods
        for stage, label, share in _own(name, recipe)
    ]
    found.append((RESULT, "Write the best method's result", 0.1))
    whole = sum(share for _, _, share in found)
    return [(name, label, share / whole) for name, label, share in found]


def _own(name: str, recipe: Recipe) -> list[tuple[str, str, float]]:
    stages = [(stage.name, stage.label, stage.share) for stage in METHODS[name].stages(recipe)]
    return [(stage, f"{name}: {label}", share) for stage, label, share in (CHECK, *stages, STRENGTH, EVALUATE)]


def _tried(name: str, recipe: Recipe, run: RunDir, log: Log, times: dict[str, dict[str, float]]) -> Row:
    """One method's row; its reason where it could not run."""
    recipe = recipe.model_copy(update={"method": name})
    kept = run.piece("compared", key("compared-1", _lasting(recipe)), ".json")
    meter = Meter(log, name, run, kept)
    row: Row = {"method": name, "about": METHODS[name].about, "reason": None}
    try:
        found = pipeline.merged(recipe, run, Log(meter))
        row |= _measured(found, run, meter)
    except (Interrupted, StorageError, RunFolderError):
        raise
    except TmergeError as error:
        row["reason"] = "; ".join(error.problems) if isinstance(error, ProblemsError) else " ".join(str(error).split())
        log(Warned(name, f"left out of the comparison: {row['reason']}"))
    meter.skip(stage for stage, _, _ in _own(name, recipe))
    release()
    times[name] = meter.kept["seconds"]
    return row | {"seconds": _seconds(name, meter, times), "rss": meter.kept["rss"], "gpu": meter.kept["gpu"]}


def _measured(found: Merged, run: RunDir, log: Emit) -> Row:
    """At the strength that validation text prefers: scores and contrasts on the hold-out, and the verdict."""
    prepared, strength, chosen = found.prepared, found.strength, found.candidates[0]
    assert strength is not None, "where methods are compared validation text chooses"
    source = (lambda: of_source(prepared, run, log)) if prepared.recipe.evaluation.source else None
    measured = evaluate(of_target(prepared, run, log), source, [chosen], prepared.corpus.holdout, log)
    verdict = judge(
        measured.scores, measured.contrasts, alpha=chosen.alpha, norm=prepared.recipe.fusion.mixing,
        strength=strength, claims=found.merge.claims,
    )  # fmt: skip
    return {
        "alpha": chosen.alpha,
        "strength": strength,
        "validation": strength["chosen"] if math.isfinite(strength["chosen"]) else math.inf,
        "scores": measured.scores,
        "contrasts": measured.contrasts,
        "claims": list(found.merge.claims),
        "verdict": verdict,
        "notes": list(found.merge.notes),
        "texts": {"validation": len(prepared.corpus.validation), "holdout": len(prepared.corpus.holdout)},
        "models": {role: getattr(prepared, role).facts.summary() for role in ("source", "target")},
    }


def _result(recipe: Recipe, run: RunDir, log: Log) -> str:
    """The best method's own run; the folder of its model."""
    output = ""

    def inside(event: Event) -> None:
        nonlocal output
        if isinstance(event, RunFinished):
            output = event.output
        elif isinstance(event, StageProgressed):
            log(replace(event, stage=RESULT))
        elif not isinstance(event, (RunStarted, StageStarted, StageFinished, Metric)):
            log(event)

    with Progress(log, RESULT, f"{recipe.method}: writing model and report", 1, "runs") as progress:
        pipeline.run(recipe, run, inside)
        progress.advance()
    return output


def _lasting(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe the times of a method belong to."""
    return recipe.model_dump(mode="json", exclude={"resolved", "output", "compare_methods"})


def _seconds(name: str, meter: Meter, times: Mapping[str, Mapping[str, float]]) -> float | None:
    """What the method's stages take alone: a shared one counts for all who need it. None: of an unknown earlier run."""
    total = 0.0
    for stage in meter.seen:
        found = meter.kept["seconds"].get(stage)
        if found is None and stage in OF_EVERYONE:
            found = next((other[stage] for other in times.values() if stage in other), None)
        if found is None:
            return None
        total += found
    return total


@dataclass
class Meter:
    """Passes a method's events on under the method's name, and keeps what its stages take: a piece, for who resumes."""

    log: Emit
    name: str
    run: RunDir
    path: Path
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept: dict[str, Any] = {"seconds": {}, "rss": 0, "gpu": 0}
        if self.path.exists():
            self.kept = json.loads(self.path.read_text(encoding="utf-8"))
        self._process = psutil.Process()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def __call__(self, event: Event) -> None:
        if isinstance(event, (RunStarted, RunFinished)):
            return
        if isinstance(event, StageStarted):
            self.log(replace(event, stage=f"{self.name}.{event.stage}", label=f"{self.name}: {event.label}"))
        elif isinstance(event, (StageProgressed, StageFinished)):
            self._weigh()
            if isinstance(event, StageFinished):
                self._finished(event)
            self.log(replace(event, stage=f"{self.name}.{event.stage}"))
        elif isinstance(event, Metric):
            self.log(replace(event, model=f"{self.name}, {event.model}"))
        else:
            self.log(event)

    def skip(self, stages: Iterable[str]) -> None:
        """Announced stages that did not come."""
        for stage in stages:
            if stage not in self.seen:
                self.log(StageFinished(f"{self.name}.{stage}", 0.0, "skipped"))

    def _finished(self, event: StageFinished) -> None:
        self.seen.append(event.stage)
        if event.outcome == "done":
            self.kept["seconds"][event.stage] = event.seconds
            self.run.save_json(self.path, self.kept)
        elif event.outcome == "skipped":
            self.kept["seconds"].setdefault(event.stage, 0.0)

    def _weigh(self) -> None:
        self.kept["rss"] = max(self.kept["rss"], self._process.memory_info().rss)
        self.kept["gpu"] = max(self.kept["gpu"], peaks()[1])
