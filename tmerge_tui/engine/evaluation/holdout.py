"""Held-out bits per byte of source, target, result and placebos, with paired intervals between them.

The placebos are what an honest result has to beat; the merge brings them. Result and placebos are measured in the
loaded target, by changing its weights for as long as it takes. Every score is a piece of the run folder and is not
computed again; a model is loaded only when one of its scores is missing, and one model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.methods.method import Candidate
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, Generated, Metric
from tmerge_tui.models.forward import release


@dataclass(frozen=True)
class Measured:
    """As the report has them: see `scores`, `contrasts` and `samples` there."""

    scores: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]] = field(default_factory=list)  # see `engine.benchmark`


def evaluate(
    target: Evaluator,
    source: Callable[[], Evaluator] | None,  # None: not measured
    candidates: Sequence[Candidate],
    holdout: Sequence[Sample],
    emit: Emit,
) -> Measured:
    """Measures everything the recipe asks for (stage "evaluate"), and emits a Metric for each score.

    Raises what `score` raises.
    """
    variants = variants_of(candidates)
    total = len(holdout) * (len(variants) + 1 + (source is not None))
    with Progress(emit, "evaluate", "Measuring on held-out text", total, "texts") as progress:
        of_source = None
        if source is not None:
            of_source = source().scores(Variant("source"), holdout, progress)
            release()
        baseline = target.scores(Variant("target"), holdout, progress)
        rows = [score_row(Variant("target"), baseline, None, target)]
        if of_source is not None:
            rows.append(score_row(Variant("source"), of_source, baseline, target))
        found = {}
        for variant in variants:
            found[variant.model, variant.alpha] = scores = target.scores(variant, holdout, progress)
            rows.append(score_row(variant, scores, baseline, target))
        contrasts = [
            {"alpha": one.alpha, "against": placebo}
            | target.interval(found["fused", one.alpha], found[placebo, one.alpha])
            | {"margin": target.options.margin}
            for one in candidates
            for placebo in one.placebos
        ]
        samples = continued(target, [Variant("target"), *fused_variants(candidates)], emit)
    return Measured(rows, contrasts, samples)


def fused_variants(candidates: Sequence[Candidate]) -> list[Variant]:
    """The result at every strength."""
    return [Variant("fused", one.alpha, one.update) for one in candidates]


def continued(evaluator: Evaluator, variants: Sequence[Variant], emit: Emit) -> list[dict[str, Any]]:
    """What each variant makes of the recipe's prompts, as the report shows them side by side."""
    samples = []
    for variant in variants:
        for prompt, text in zip(evaluator.options.prompts, evaluator.continuations(variant), strict=True):
            samples.append({"model": variant.model, "alpha": variant.alpha, "prompt": prompt, "text": text})
            emit(Generated(variant.model, prompt, text))
    return samples


def variants_of(candidates: Sequence[Candidate]) -> list[Variant]:
    """The result at every strength, each followed by its placebos."""
    return [
        variant
        for one in candidates
        for variant in (
            Variant("fused", one.alpha, one.update),
            *(Variant(name, one.alpha, update) for name, update in one.placebos.items()),
        )
    ]


def score_row(
    variant: Variant,
    scores: Scores,
    baseline: Scores | None,
    evaluator: Evaluator,
    name: str = "bits_per_byte",
    unit: str = "bits/byte",
) -> dict[str, Any]:
    """As `scores` of report.json has it; emits a Metric of that name."""
    between: dict[str, Any] = {"difference": None, "low": None, "high": None}
    if baseline is not None:
        between = evaluator.interval(scores, baseline)
    value = scores.bits_per_byte
    evaluator.emit(Metric(name, variant.model, value, unit, alpha=variant.alpha, **between))
    row = {"model": variant.model, "alpha": variant.alpha, "bits_per_byte": value}
    return (
        row | {"texts": len(scores.bits), "bytes": sum(scores.bytes)} | between | {"margin": evaluator.options.margin}
    )
