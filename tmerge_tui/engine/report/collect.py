"""report.json: everything a run has measured, gathered from the stages."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tmerge_tui import __version__
from tmerge_tui.engine.evaluation.holdout import Measured
from tmerge_tui.engine.methods.method import Merge
from tmerge_tui.engine.methods.registry import METHODS
from tmerge_tui.engine.part import Part
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.report.besides import with_besides
from tmerge_tui.engine.report.next_steps import next_steps
from tmerge_tui.engine.report.selection import with_selection
from tmerge_tui.engine.report.training_verdict import with_adaptation
from tmerge_tui.engine.report.verdict import judge, with_benchmarks
from tmerge_tui.engine.resources import peaks
from tmerge_tui.engine.weights.export import Folded

VERSION = 1


def versions() -> dict[str, str]:
    """Of everything that can change a number."""
    found = {"tmerge": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "pot", "numpy"):
        found[package] = importlib.metadata.version(package)
    return found


def collect(
    prepared: Prepared,
    merge: Merge,
    parts: Sequence[Part],
    folded: Sequence[Folded],
    measured: Measured,
    timings: list[dict[str, Any]],
    warnings: list[dict[str, str]],
) -> dict[str, Any]:
    """The results as plain data, version 1 of report.json: what every run has, each part at its own key, and `next`."""
    recipe, method = prepared.recipe, METHODS[prepared.recipe.method]
    rss, gpu = peaks()
    first = folded[0]
    own = {part.key: part.data for part in parts}
    adaptation = own.get("adaptation")
    verdict = judge(
        measured.scores,
        measured.contrasts,
        own.get("projections") or [],
        norm=recipe.fusion.mixing,
        strength=own.get("strength"),
        claims=merge.claims,
    )
    selection = own.get("selection")
    if selection is None:
        verdict = with_adaptation(verdict, adaptation)
    else:
        verdict = with_selection(verdict, selection, measured.scores, adaptation)
    verdict = with_besides(verdict, own)
    trained = adaptation is not None if selection is None else selection["model"] not in ("fused", "target")
    output = _output(folded, measured, verdict["alpha"], trained)
    results = {
        "version": VERSION,
        "tmerge": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "verdict": with_benchmarks({**verdict, "output": output}, own.get("benchmarks") or []),
        "recipe": recipe.model_dump(mode="json"),
        "models": {"source": _model(prepared.source), "target": _model(prepared.target)},
        "calibration": {
            "column": prepared.corpus.column,
            "samples": len(prepared.corpus.calibration),
            "rows": merge.rows,
            "holdout": len(prepared.corpus.holdout),
            "sha256": prepared.corpus.sha256,
            "holdout_sha256": prepared.corpus.holdout_sha256,
        },
        "output": [
            {"alpha": one.alpha, "folder": Path(one.folder).name, "trained": trained and one is first} for one in folded
        ],
        "scores": measured.scores,
        "contrasts": measured.contrasts,
        "method": {
            "name": method.name,
            "about": method.about,
            "settings": [list(setting) for setting in method.settings(recipe)],
            "claims": list(merge.claims),  # placebos that all have to be beaten
            "controls": method.controls,
        },
        **own,
        "timings": timings,
        "memory": {"peak_rss": rss, "peak_gpu": gpu},
        "versions": versions(),
        "warnings": warnings,
        "tensors": {"fused": list(first.fused), "copied": first.copied},
        "skipped": [*prepared.matching.notes, *merge.notes],
        "files": list(first.files),
    }
    return results | {"next": next_steps(results)}


def _output(folded: Sequence[Folded], measured: Measured, alpha: float | None, trained: bool) -> str:
    """Folder that is the result: what was trained or chosen, else that of the strength which the verdict names."""
    strengths = [row["alpha"] for row in measured.scores if row["model"] == "fused"]
    found = next((one for one in folded if one.alpha == alpha), None) if not trained and alpha in strengths else None
    return Path((found or folded[0]).folder).name


def _model(party: Party) -> dict[str, Any]:
    facts = party.facts.summary()
    facts.pop("folder")
    return {**facts, "commit": party.located.commit, "precision": party.located.precision}
