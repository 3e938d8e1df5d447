"""Events -> what a screen shows. Pure: no clock, no files, no torch; replaying a log gives the same state again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from tmerge_tui.events import (
    Artifact,
    Checked,
    Convergence,
    Event,
    Generated,
    HeatMap,
    LayerPlanSolved,
    Line,
    Logged,
    Metric,
    PairSolved,
    ResourceSample,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    Scouted,
    StageFinished,
    StageProgressed,
    StageStarted,
    TrainingStep,
    Validated,
    Warned,
)
from tmerge_tui.quantities import bits, interval, signed

LOG = 500  # lines of the log tail
IGNORED = (LayerPlanSolved, Generated, Artifact, Scouted)  # what no screen of a run shows: the report has all of it

Phase = Literal["starting", "running", "finished", "failed", "interrupted"]
Outcome = Literal["waiting", "running", "done", "cached", "skipped", "failed", "interrupted"]


@dataclass
class Stage:
    """One stage; `outcome` says where it stands, times are unix seconds of the worker's clock."""

    name: str
    label: str
    weight: float = 0.0  # share of the run's work
    done: int = 0
    total: int = 0
    unit: str = ""
    rate: float = 0.0  # units a second, 0 while unknown
    note: str = ""
    outcome: Outcome = "waiting"
    started: float | None = None
    seconds: float | None = None  # set when it has ended

    @property
    def ended(self) -> bool:
        return self.outcome in ("done", "cached", "skipped")

    @property
    def fraction(self) -> float:
        if self.ended:
            return 1.0
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 0.0

    def elapsed(self, now: float) -> float:
        if self.seconds is not None:
            return self.seconds
        return max(now - self.started, 0.0) if self.started is not None else 0.0

    def eta(self) -> float | None:
        """Seconds left, None while unknown."""
        if self.outcome != "running" or self.rate <= 0:
            return None
        return max(self.total - self.done, 0) / self.rate


@dataclass
class RunState:
    """A run as far as its events tell. `apply` every line in order; a new RunStarted begins afresh."""

    phase: Phase = "starting"
    start: RunStarted | None = None  # folder, device, versions
    checked: Checked | None = None  # the models as the run found them
    started: float | None = None
    last: float = 0.0  # time of the last event
    stages: dict[str, Stage] = field(default_factory=dict)  # in order
    current: str | None = None  # name of the running stage
    costs: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)  # side -> (l, m) -> layer cost
    pairs: int = 0
    unconverged: int = 0
    heat: HeatMap | None = None
    convergence: Convergence | None = None
    trainings: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)  # method, seed -> curve
    validations: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)  # bits per byte
    training: TrainingStep | None = None  # the last report of the one that is going on, or was last
    warnings: list[Warned] = field(default_factory=list)
    log: deque[tuple[float, str, str]] = field(default_factory=lambda: deque(maxlen=LOG))  # (t, level, message)
    resources: ResourceSample | None = None
    peak_rss: int = 0
    peak_gpu: int = 0
    finished: RunFinished | None = None  # carries the verdict
    failed: RunFailed | None = None
    interrupted: RunInterrupted | None = None

    def apply(self, line: Line) -> None:
        if isinstance(line.event, RunStarted):
            self.__init__()  # type: ignore[misc]
        self.last = max(self.last, line.t)
        self._apply(line.event, line.t)

    def _apply(self, event: Event, t: float) -> None:
        match event:
            case RunStarted():
                self.phase, self.start, self.started = "running", event, t
                for each in event.stages:
                    name = str(each.get("name", ""))
                    self.stages[name] = Stage(name, each.get("label") or name, float(each.get("weight") or 0.0))
            case Checked():
                self.checked = event
            case StageStarted():
                self.current = event.stage
                old = self._stage(event.stage)
                self.stages[event.stage] = Stage(
                    old.name, event.label, old.weight, 0, event.total, event.unit, outcome="running", started=t
                )
            case StageProgressed():
                stage = self._stage(event.stage)
                stage.done, stage.total, stage.unit = event.done, event.total, event.unit
                stage.rate, stage.note = event.rate or 0.0, event.note
            case StageFinished():
                stage = self._stage(event.stage)
                stage.outcome = event.outcome if event.outcome in ("cached", "skipped") else "done"  # type: ignore[assignment]
                stage.seconds, stage.done = event.seconds or 0.0, stage.total
                if self.current == event.stage:
                    self.current = None
            case PairSolved():
                self.pairs += 1
                self.unconverged += not event.converged
                if event.cost is not None:  # null in the file when it was not finite
                    self.costs.setdefault(event.side, {})[event.l, event.m] = event.cost
            case HeatMap():
                self.heat = event
            case Convergence():
                self.convergence = event
            case ResourceSample():
                self.resources = event
                self.peak_rss = max(self.peak_rss, event.rss)
                self.peak_gpu = max(self.peak_gpu, event.gpu_used)
            case TrainingStep():
                self.training = event
                _draw(self.trainings.setdefault((event.method, event.seed), []), event.step, event.loss)
            case Validated():
                _draw(self.validations.setdefault((event.method, event.seed), []), event.step, event.bits_per_byte)
            case Metric():
                if event.value is not None:
                    self.log.append((t, "score", measured(event)))
            case Warned():
                self.warnings.append(event)
                self.log.append((t, "warning", f"{event.where}: {event.message}"))
            case Logged():
                self.log.append((t, event.level, event.message))
            case RunFinished():
                self.phase, self.finished = "finished", event
            case RunFailed():
                self.phase, self.failed = "failed", event
                self.log.append((t, "error", f"{event.kind}: {event.message}"))
                self._leave("failed", t)
            case RunInterrupted():
                self.phase, self.interrupted = "interrupted", event
                self._leave("interrupted", t)

    def _stage(self, name: str) -> Stage:
        return self.stages.setdefault(name, Stage(name, name))

    def _leave(self, outcome: Outcome, t: float) -> None:
        for stage in self.stages.values():
            if stage.outcome == "running":
                stage.outcome, stage.seconds = outcome, stage.elapsed(t)

    @property
    def fraction(self) -> float:
        """Share of the whole run's work that is done, in [0, 1]."""
        if self.phase == "finished":
            return 1.0
        total = sum(stage.weight for stage in self.stages.values())
        return sum(s.weight * s.fraction for s in self.stages.values()) / total if total > 0 else 0.0

    def elapsed(self, now: float) -> float:
        """Seconds since the run started, up to `now` while it runs."""
        if self.started is None:
            return 0.0
        return max((now if self.phase == "running" else self.last) - self.started, 0.0)

    def eta(self, now: float) -> float | None:
        """Seconds left: the running stage at its own rate, the rest at the pace of the work done so far.

        None while unknown; cached stages say nothing about pace.
        """
        if self.phase != "running":
            return None
        worked = [s for s in self.stages.values() if s.outcome in ("done", "running") and s.weight * s.fraction > 0]
        share = sum(s.weight * s.fraction for s in worked)
        if share < 0.01:
            return None
        pace = sum(s.elapsed(now) for s in worked) / share
        left = 0.0
        for stage in self.stages.values():
            own = stage.eta()
            left += own if own is not None else pace * stage.weight * (1 - stage.fraction)
        return left

    def cost_matrix(self, side: str) -> list[list[float | None]]:
        """Layer costs of `side`, target layers by source layers; None where not yet solved.

        With all rows and columns from the start, once it is known how many layers the models have.
        """
        cells, models = self.costs.get(side, {}), self.checked
        rows = max([l + 1 for l, _ in cells] + ([_layers(models.target)] if models else []), default=0)
        columns = max([m + 1 for _, m in cells] + ([_layers(models.source)] if models else []), default=0)
        return [[cells.get((l, m)) for m in range(columns)] for l in range(rows)]


def measured(event: Metric) -> str:
    """`fused alpha 0.1: 2.1702 bits/byte  (-0.0004 to the target, 95 % -0.0008 to +0.0001)`"""
    alpha = "" if event.alpha is None else f" alpha {event.alpha:g}"
    change = ""
    if event.difference is not None and event.low is not None and event.high is not None:
        change = f"  ({signed(event.difference)} to the target, 95 % {interval(event.low, event.high)})"
    return f"{event.model}{alpha}: {bits(event.value)} {event.unit or event.name}{change}"


def _layers(facts: dict[str, Any]) -> int:
    return int(facts.get("layers") or 0)


def _draw(curve: list[tuple[float, float]], step: int, value: float | None) -> None:
    """Adds a point; a training that goes back to an earlier moment takes back what it had drawn after it."""
    while curve and curve[-1][0] >= step:
        curve.pop()
    if value is not None:  # null in the file when it was not finite
        curve.append((float(step), value))
