"""Trained models on the hold-out: a row for every arm, and who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.methods.method import Candidate
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.arms import Setup, arms, nothing_to_teach, result_arm, sft_told
from tmerge_tui.engine.training.distillation import ACROSS, POSITIONS, SAME
from tmerge_tui.engine.training.patience import PASSES
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.trainer import steps_of_pass
from tmerge_tui.events import Emit, Metric
from tmerge_tui.recipe.adaptation import CONTROLS, WRITTEN_CONTROLS

STAGE = "measure_trained"
CONTRASTS = (  # who has to beat whom
    ("adapted", "fused"), ("adapted", "sft"), ("hinted", "adapted"), ("hinted", "hinted_permuted"), ("hinted", "sft"),
    ("distilled", "sft"), ("hinted", "distilled"), ("distilled_hinted", "distilled"),
    ("adapted_distilled", "fused"), ("adapted_distilled", "adapted"), ("adapted_distilled", "sft"),
    ("adapted_distilled", "distilled"),
    ("synthetic", "sft"), ("synthetic", "distilled"), *(("synthetic", name) for name in WRITTEN_CONTROLS),
)  # fmt: skip


def variant_of(piece: TrainedPiece) -> Variant:
    """One training as a variant of the target, for whatever is measured on it."""
    return Variant(piece.arm, None, piece)


def measure_trained(
    setup: Setup,
    target: Evaluator,
    trained: Sequence[TrainedPiece],
    fused: Candidate,  # the merged model without training
    holdout: Sequence[Sample],
    emit: Emit,
) -> dict[str, Any]:
    """`adaptation` of report.json (stage "measure_trained"): a row for every method, and who beats whom.

    A row's score is the mean over seeds, `spread` their standard deviation; intervals are paired over texts, with each
    text's bits averaged over seeds: they cover chance in the choice of texts, the spread covers the seeds.
    """
    total = (len(trained) + 2) * len(holdout)
    alpha = fused.alpha
    found: dict[str, list[Scores]] = {}
    with Progress(emit, STAGE, "Measuring trained models", total, "texts") as progress:
        baseline = target.scores(Variant("target"), holdout, progress)
        found["fused"] = [target.scores(Variant("fused", alpha, fused.update), holdout, progress)]
        for piece in trained:
            found.setdefault(piece.arm, []).append(target.scores(variant_of(piece), holdout, progress))
        rows = [_row("target", [baseline], None, None, target)]
        rows += [_row(m, s, alpha if m == "fused" else _alpha(m, setup), baseline, target) for m, s in found.items()]
    for row in rows[2:]:
        between = {name: row[name] for name in ("difference", "low", "high")}
        emit(Metric("bits_per_byte", row["model"], row["bits_per_byte"], "bits/byte", alpha=row["alpha"], **between))
    matters = {"margin": target.options.margin}
    placebos = [name for name in found if name.startswith(CONTROLS) and name not in WRITTEN_CONTROLS]
    contrasts = [
        {"model": ours, "against": theirs, **target.interval(_mean(found[ours]), _mean(found[theirs])), **matters}
        for ours, theirs in (*CONTRASTS, *(("distilled", name) for name in placebos))
        if ours in found and theirs in found
    ]
    options = setup.options
    first = trained[0].figures
    reason = nothing_to_teach(setup, trained)
    tuned = None if setup.tuned is None else {**setup.tuned.plain(), "sft": sft_told(setup, trained), "why_not": reason}
    return {
        "method": options.method,
        "result": result_arm(options, taught=not reason),
        "seeds": list(options.seeds),
        "steps": first.steps,
        "tokens": first.tokens,
        "samples": len(setup.examples.samples),
        "distillation": _rule(setup),
        "tuned": tuned,
        "search": setup.searched,
        "patience": _patience(setup),
        "rows": rows,
        "contrasts": contrasts,
        "trainings": [
            {
                "model": piece.arm,
                "seed": piece.seed,
                "steps": piece.figures.steps,
                "tokens": piece.figures.tokens,
                "seconds": piece.figures.seconds,
                "loss": piece.figures.loss,
                "curve": [list(point) for point in piece.figures.curve],
                "validation": [list(point) for point in piece.figures.measured],
                "told": [list(point) for point in piece.figures.told],
                "decayed": piece.figures.decayed,
            }
            for piece in trained
        ],
    }


def _patience(setup: Setup) -> dict[str, Any] | None:
    """How the number of passes was found, with epochs: auto."""
    options = setup.options
    if not options.patient:
        return None
    pass_steps = steps_of_pass(options, len(setup.examples.blocks))
    return {"passes": options.patience or PASSES, **options.that_affect("patience"), "steps_of_pass": pass_steps}


def _alpha(method: str, setup: Setup) -> float | None:
    start = {arm.name: arm.start for arm in arms(setup.options)}
    return setup.alpha if start.get(method) == "merged" else None


def _rule(setup: Setup) -> str | None:
    """How source and target were compared; None when nothing was distilled."""
    if setup.source is not None:
        return SAME
    if setup.teacher is None:
        return None
    options = setup.options.teaching
    return ACROSS.format(events=options.events, positions=POSITIONS[options.positions])


def _row(
    model: str, scores: Sequence[Scores], alpha: float | None, baseline: Scores | None, target: Evaluator
) -> dict[str, Any]:
    values = [each.bits_per_byte for each in scores]
    between: dict[str, Any] = {"difference": None, "low": None, "high": None}
    if baseline is not None:
        between = target.interval(_mean(scores), baseline)
    return {
        "model": model,
        "alpha": alpha,
        "bits_per_byte": mean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        "seeds": values,
        **between,
        "margin": target.options.margin,
    }


def _mean(scores: Sequence[Scores]) -> Scores:
    """Each text's bits averaged over seeds."""
    assert all(a.bytes == b.bytes for a, b in pairwise(scores))
    return Scores(tuple(mean(bits) for bits in zip(*(each.bits for each in scores), strict=True)), scores[0].bytes)
