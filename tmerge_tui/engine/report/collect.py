"""report.json: everything a run has measured, gathered from the stages."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tmerge_tui import __version__
from tmerge_tui.engine.evaluation.alpha_search import Strength
from tmerge_tui.engine.evaluation.holdout import Evaluation
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports
from tmerge_tui.engine.methods.transport_merge.fusion import Fusion
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.report.training_verdict import with_adaptation
from tmerge_tui.engine.report.verdict import judge, with_benchmarks
from tmerge_tui.engine.resources import peaks
from tmerge_tui.engine.weights.export import Folded
from tmerge_tui.models.layout import side_of

VERSION = 1
PICTURES = 12  # heat maps in a report at most


def versions() -> dict[str, str]:
    """Of everything that can change a number."""
    found = {"tmerge": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "pot", "numpy"):
        found[package] = importlib.metadata.version(package)
    return found


def collect(
    prepared: Prepared,
    rows: int,  # of activations, T
    transports: Transports,
    fusion: Fusion,
    strength: Strength | None,  # None: the recipe gave alpha
    folded: list[Folded],
    evaluation: Evaluation,
    adaptation: dict[str, Any] | None,  # None: nothing was trained
    timings: list[dict[str, Any]],
    warnings: list[dict[str, str]],
) -> dict[str, Any]:
    """The results as plain data, version 1 of report.json."""
    recipe = prepared.recipe
    figures = fusion.figures()
    rss, gpu = peaks()
    kinds = [kind for kind in recipe.fused_projections if kind in prepared.matching.kinds]
    plans = {kind: transports.layer_plan(kind) for kind in prepared.matching.kinds}
    chosen = _chosen(transports, kinds)
    first = folded[0]
    chosen_alpha = None if strength is None else strength.plain()
    verdict = judge(evaluation.scores, evaluation.contrasts, figures, norm=recipe.fusion.norm, strength=chosen_alpha)
    return {
        "version": VERSION,
        "tmerge": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "verdict": with_benchmarks(with_adaptation(verdict, adaptation), evaluation.benchmarks),
        "recipe": recipe.model_dump(mode="json"),
        "models": {"source": _model(prepared.source), "target": _model(prepared.target)},
        "calibration": {
            "column": prepared.corpus.column,
            "samples": len(prepared.corpus.calibration),
            "rows": rows,
            "holdout": len(prepared.corpus.holdout),
            "sha256": prepared.corpus.sha256,
            "holdout_sha256": prepared.corpus.holdout_sha256,
        },
        "output": [
            {"alpha": one.alpha, "folder": Path(one.folder).name, "trained": adaptation is not None and one is first}
            for one in folded
        ],
        "scores": evaluation.scores,
        "contrasts": evaluation.contrasts,
        "benchmarks": evaluation.benchmarks,
        "adaptation": adaptation,
        "strength": chosen_alpha,
        "projections": figures,
        "layer_plans": {
            kind: {name: getattr(plan, name).tolist() for name in ("P_in", "P_out", "P_eff", "P")}
            for kind, plan in plans.items()
        },
        "layer_costs": {side: transports.layer_cost(side).tolist() for side in _sides(transports)},
        "pairs": [
            {"l": l, "m": m, "side": side, **pair}
            for l, side in transports.solved()
            for m, pair in transports.pairs(l, side).items()
        ],
        "mass": [asdict(transports.mass(*plan)) for plan in chosen],
        "heatmaps": [vars(transports.heatmap(*plan)) for plan in chosen],
        "samples": evaluation.samples,
        "timings": timings,
        "memory": {"peak_rss": rss, "peak_gpu": gpu},
        "versions": versions(),
        "warnings": warnings,
        "tensors": {"fused": list(first.fused), "copied": first.copied},
        "skipped": [*prepared.matching.notes, *fusion.notes],
        "files": list(first.files),
    }


def _model(party: Party) -> dict[str, Any]:
    facts = party.facts.summary()
    facts.pop("folder")
    return {**facts, "commit": party.located.commit}


def _sides(transports: Transports) -> list[str]:
    return list(dict.fromkeys(side for _, side in transports.solved()))


def _chosen(transports: Transports, kinds: list[str]) -> list[tuple[str, int, int]]:
    """The plans worth a picture: for every side, the source layer that a first and a late target layer lean on most."""
    chosen: list[tuple[str, int, int]] = []
    for kind in kinds:
        P = transports.layer_plan(kind).P
        for end in ("in", "out"):
            side = side_of(kind, "in" if end == "in" else "out")
            for l in sorted({0, P.shape[0] // 2}):
                m = int(P[l].argmax())
                if P[l, m] > 0 and (side, l, m) not in chosen:
                    chosen.append((side, l, m))
    step = max(1, -(-len(chosen) // PICTURES))
    return chosen[::step]
