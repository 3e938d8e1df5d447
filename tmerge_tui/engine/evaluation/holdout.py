"""Held-out bits per byte of source, target, result and placebos, with paired intervals between them.

The placebos are what an honest result has to beat: `shrink`, the fused rows times (1 - alpha) with nothing transported,
and `permuted`, transport through plans whose source channels are in random order. Result and placebos are measured in
the loaded target, by changing its weights for as long as it takes. Every score is a piece of the run folder and is not
computed again; a model is loaded only when one of its scores is missing, and one model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, paired_interval
from tmerge_tui.engine.evaluation.evaluator import Bench, Variant
from tmerge_tui.engine.methods.transport_merge.fusion import Fusion
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, Metric
from tmerge_tui.events import Sample as Continued
from tmerge_tui.models.forward import LoadedModel, release
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir


@dataclass(frozen=True)
class Evaluation:
    """As the report has them: see `scores`, `contrasts` and `samples` there."""

    scores: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]] = field(default_factory=list)  # see `engine.benchmark`


def evaluate(
    target: LoadedModel,
    source: LoadedModel | None,  # None: not measured
    fusion: Fusion,
    permuted: Fusion | None,  # None: without this placebo
    holdout: Sequence[Sample],
    recipe: Recipe,
    run: RunDir,
    emit: Emit,
) -> Evaluation:
    """Measures everything the recipe asks for (stage "evaluate"), and emits a Metric for each score.

    Raises what `score` raises.
    """
    variants = list(_variants(fusion, permuted, recipe))
    bench = Bench(target, recipe, run, emit)
    total = len(holdout) * (len(variants) + 1 + (source is not None))
    with Progress(emit, "evaluate", "Measuring on held-out text", total, "texts") as progress:
        of_source = None
        if source is not None:
            of_source = score_source(source, holdout, recipe, run, emit, progress)
            release()
        baseline = bench.scores(Variant("target"), holdout, progress)
        rows = [_row(Variant("target"), baseline, None, recipe, emit)]
        if of_source is not None:
            rows.append(_row(Variant("source"), of_source, baseline, recipe, emit))
        found = {}
        for variant in variants:
            found[variant.model, variant.alpha] = scores = bench.scores(variant, holdout, progress)
            rows.append(_row(variant, scores, baseline, recipe, emit))
        contrasts = []
        for alpha in recipe.fusion.alphas:
            for control in ("shrink", "permuted"):
                if (control, alpha) in found:
                    pair = found["fused", alpha], found[control, alpha]
                    contrasts.append({"alpha": alpha, "against": control, **_interval(*pair, recipe)})
        samples = continued(bench, [Variant("target"), *fused_variants(fusion, recipe)], emit)
    return Evaluation(rows, contrasts, samples)


def fused_variants(fusion: Fusion, recipe: Recipe) -> list[Variant]:
    """The result at every alpha."""
    return [Variant("fused", alpha, fusion) for alpha in recipe.fusion.alphas]


def continued(bench: Bench, variants: Sequence[Variant], emit: Emit) -> list[dict[str, Any]]:
    """What each variant makes of the recipe's prompts, as the report shows them side by side."""
    samples = []
    for variant in variants:
        for prompt, text in zip(bench.recipe.evaluation.prompts, bench.continuations(variant), strict=True):
            samples.append({"model": variant.model, "alpha": variant.alpha, "prompt": prompt, "text": text})
            emit(Continued(variant.model, prompt, text))
    return samples


def score_source(
    source: LoadedModel, holdout: Sequence[Sample], recipe: Recipe, run: RunDir, emit: Emit, progress: Progress
) -> Scores:
    """The source's scores ahead of `evaluate`, while it is loaded; `evaluate` then finds them."""
    return Bench(source, recipe, run, emit).scores(Variant("source"), holdout, progress)


def _variants(fusion: Fusion, permuted: Fusion | None, recipe: Recipe) -> Iterator[Variant]:
    for alpha in recipe.fusion.alphas:
        yield Variant("fused", alpha, fusion)
        if "shrink" in recipe.evaluation.controls:
            yield Variant("shrink", alpha, fusion)
        if permuted is not None:
            yield Variant("permuted", alpha, permuted)


def _row(variant: Variant, scores: Scores, baseline: Scores | None, recipe: Recipe, emit: Emit) -> dict[str, Any]:
    interval: dict[str, Any] = {"difference": None, "low": None, "high": None}
    if baseline is not None:
        interval = _interval(scores, baseline, recipe)
    value = scores.bits_per_byte
    emit(Metric("bits_per_byte", variant.model, value, "bits/byte", alpha=variant.alpha, **interval))
    row = {"model": variant.model, "alpha": variant.alpha, "bits_per_byte": value}
    return row | {"texts": len(scores.bits), "bytes": sum(scores.bytes)} | interval


def _interval(a: Scores, b: Scores, recipe: Recipe) -> dict[str, float]:
    names = ("difference", "low", "high")
    return dict(zip(names, paired_interval(a, b, recipe.evaluation.resamples, recipe.seed), strict=True))
