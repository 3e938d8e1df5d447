"""A run in one line: its models, state, verdict, difference to the target and how long it took. No torch.

What a list of runs shows, on Home and in `tmerge runs`. A report is read once and again only when it has changed.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.errors import RecipeError, RunFolderError
from tmerge_tui.quantities import known, signed
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import run_index
from tmerge_tui.worker.follow import REPORT, State, last_word, later_attempt, state_of


@dataclass(frozen=True)
class Summary:
    """`verdict` is "helped", "no transfer", "worse", "no difference" or empty; `difference` in bits per byte."""

    path: Path
    started: float  # seconds since the epoch
    state: State
    source: str = "?"
    target: str = "?"
    verdict: str = ""
    alpha: float | None = None
    difference: float | None = None
    seconds: float | None = None  # of the stages that the report counts
    headline: str = ""  # the report's first line
    note: str = ""  # how a later attempt on a finished run ended

    @property
    def merge(self) -> str:
        """`big → small`: the last parts of both names."""
        return " → ".join(Path(name).name or name for name in (self.source, self.target))

    @property
    def outcome(self) -> str:
        """`helped -0.0123`; of a run without a report nothing."""
        number = "" if self.difference is None else f" {signed(self.difference)}"
        return f"{self.verdict}{number}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def summaries() -> list[Summary]:
    """Of every run on the list of this machine, newest first."""
    return [summary(entry.path, entry.started) for entry in run_index.entries()]


def summary(path: Path, started: float) -> Summary:
    run = RunDir(path)
    source, target = _models(str(run.recipe), _age(run.recipe))
    found = Summary(path, started, state_of(run), source, target, note=later_attempt(run))
    if found.state != "finished":
        return found
    report = run.path / REPORT
    said = _report(str(report), _age(report))
    return Summary(**{**vars(found), **said, "seconds": said.get("seconds") or _seconds(run)})


def verdict_folder(run: RunDir) -> str:
    """The model inside the run that its verdict is about. Raises RunFolderError for a run without a report."""
    try:
        report = json.loads((run.path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{run.path} has no report", "a finished run", "tmerge resume finishes it") from error
    verdict, outputs = report["verdict"], report.get("output") or []
    if verdict.get("output"):
        return str(verdict["output"])
    # of an earlier version, which told outputs by their strength
    named = [Path(one["folder"]).name for one in outputs if one["alpha"] == verdict.get("alpha")]
    return named[0] if named else run.model.name


def _age(file: Path) -> int:
    """Changes when the file does; 0 when it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=512)
def _models(recipe: str, age: int) -> tuple[str, str]:
    if not age:
        return "?", "?"
    from tmerge_tui.recipe import load_recipe  # pydantic: the first screen does not wait for it

    try:
        made = load_recipe(recipe)
    except RecipeError:
        return "?", "?"  # of another version of tmerge: the folder's name has to do
    return made.source.model, made.target.model


@functools.lru_cache(maxsize=512)
def _report(file: str, age: int) -> dict[str, Any]:
    """What of report.json a line has room for; empty when it cannot be read."""
    try:
        results = json.loads(Path(file).read_text(encoding="utf-8"))
        verdict, alpha = results["verdict"], results["verdict"].get("alpha")
        rows = _rows_of_the_result(results)
        seconds = sum(known(stage.get("seconds")) or 0.0 for stage in results.get("timings") or ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    difference = known(rows[0].get("difference")) if rows else None
    said = {"verdict": _word(verdict), "alpha": alpha, "difference": difference, "seconds": seconds or None}
    return {**said, "headline": str(verdict.get("headline") or "")}


def _rows_of_the_result(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The row that the verdict is about: of the model that was selected, else of the fused one at its alpha."""
    chosen = results.get("selection") or {"model": "fused", "alpha": results["verdict"].get("alpha")}
    rows = [*results["scores"], *(results.get("adaptation") or {}).get("rows", [])]
    mine = [row for row in rows if row["model"] == chosen["model"]]
    return [row for row in mine if row["model"] != "fused" or row["alpha"] == chosen["alpha"]]


def _word(verdict: dict[str, Any]) -> str:
    if verdict.get("helped") is None:
        return "no difference"
    if not verdict["helped"]:
        return "worse"
    return "helped" if verdict.get("beats_placebos") else "no transfer"


def _seconds(run: RunDir) -> float | None:
    return known(getattr(last_word(run.events), "seconds", None))
