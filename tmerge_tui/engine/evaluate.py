"""Held-out bits per byte of source, target, result and placebos, with paired intervals between them.

The placebos are what an honest result has to beat: `shrink`, the fused rows times (1 - alpha) with nothing transported,
and `permuted`, transport through plans whose source channels are in random order. Result and placebos are measured in
the loaded target, by changing its weights for as long as it takes. Every score is a piece of the run folder and is not
computed again; a model is loaded only when one of its scores is missing, and one model is in memory at a time.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from tmerge_tui.engine.calibrate import Sample
from tmerge_tui.engine.extract import Subject
from tmerge_tui.engine.fused import Fusion
from tmerge_tui.engine.generate import continue_prompts
from tmerge_tui.engine.patch import patched
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.rundir import RunDir, key
from tmerge_tui.engine.score import Scores, paired_interval, score
from tmerge_tui.events import Emit, Metric, Warned
from tmerge_tui.events import Sample as Continued
from tmerge_tui.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """As the report has them: see `scores`, `contrasts` and `samples` there."""

    scores: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class _Variant:
    """One row of the table of scores."""

    model: str  # "target" | "source" | "fused" | "shrink" | "permuted"
    alpha: float | None = None
    fusion: Fusion | None = None

    def on(self, model: Any, norm: str) -> AbstractContextManager[None]:
        """The model with this variant's weights."""
        if self.fusion is None or self.alpha is None:
            return nullcontext()
        return patched(model, self.fusion, self.alpha, norm, transported=self.model != "shrink")


def evaluate(
    target: Subject,
    source: Subject | None,  # None: not measured
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
    bench = _Bench(target, holdout, recipe, run, emit)
    total = len(holdout) * (len(variants) + 1 + (source is not None))
    with Progress(emit, "evaluate", "Measuring on held-out text", total, "texts") as progress:
        of_source = None
        if source is not None:
            of_source = score_source(source, holdout, recipe, run, emit, progress)
            _release()
        baseline = bench.scores(_Variant("target"), progress)
        rows = [_row(_Variant("target"), baseline, None, recipe, emit)]
        if of_source is not None:
            rows.append(_row(_Variant("source"), of_source, baseline, recipe, emit))
        found = {}
        for variant in variants:
            found[variant.model, variant.alpha] = scores = bench.scores(variant, progress)
            rows.append(_row(variant, scores, baseline, recipe, emit))
        contrasts = []
        for alpha in recipe.fusion.alpha:
            for control in ("shrink", "permuted"):
                if (control, alpha) in found:
                    pair = found["fused", alpha], found[control, alpha]
                    contrasts.append({"alpha": alpha, "against": control, **_interval(*pair, recipe)})
        samples = []
        for variant in (_Variant("target"), *(v for v in variants if v.model == "fused")):
            for prompt, text in zip(recipe.evaluation.prompts, bench.continuations(variant), strict=True):
                samples.append({"model": variant.model, "alpha": variant.alpha, "prompt": prompt, "text": text})
                emit(Continued(variant.model, prompt, text))
    return Evaluation(rows, contrasts, samples)


def score_source(
    source: Subject, holdout: Sequence[Sample], recipe: Recipe, run: RunDir, emit: Emit, progress: Progress
) -> Scores:
    """The source's scores ahead of `evaluate`, while it is loaded; `evaluate` then finds them."""
    return _Bench(source, holdout, recipe, run, emit).scores(_Variant("source"), progress)


class _Bench:
    """One model and what is measured on it, from the run folder where it is there already."""

    def __init__(self, subject: Subject, holdout: Sequence[Sample], recipe: Recipe, run: RunDir, emit: Emit) -> None:
        self.subject, self.holdout, self.recipe, self.run, self.emit = subject, holdout, recipe, run, emit
        self.model: Any = None
        self.texts = key([sample.plain for sample in holdout])

    def scores(self, variant: _Variant, progress: Progress) -> Scores:
        limit = self.recipe.calibration.max_length
        path = self.run.piece("scores", self._key(variant, self.texts, limit), ".json")
        if path.exists():
            progress.skip(len(self.holdout))
            kept = json.loads(path.read_text())
            return Scores(tuple(kept["bits"]), tuple(kept["bytes"]))
        name = variant.model if variant.alpha is None else f"{variant.model} at alpha {variant.alpha:g}"
        warn = partial(_warn, self.emit, name)
        advance = partial(progress.advance, note=name)
        with variant.on(self._loaded(), self.recipe.fusion.norm):
            batch = self.recipe.evaluation.batch_size
            scores = score(self.model, self.subject.tokenizer, self.holdout, batch, limit, warn, advance)
        self.run.save_json(path, asdict(scores))
        return scores

    def continuations(self, variant: _Variant) -> list[str]:
        prompts = self.recipe.evaluation.prompts
        if not prompts:
            return []
        path = self.run.piece("continued", self._key(variant, prompts), ".json")
        if path.exists():
            return list(json.loads(path.read_text()))
        with variant.on(self._loaded(), self.recipe.fusion.norm):
            texts = continue_prompts(self.model, self.subject.tokenizer, prompts)
        self.run.save_json(path, texts)
        return texts

    def _loaded(self) -> Any:
        if self.model is None:
            self.model = self.subject.load()
        return self.model

    def _key(self, variant: _Variant, *asked: Any) -> str:
        weights = None
        if variant.fusion is not None:
            weights = [variant.model == "shrink", variant.fusion.key, variant.alpha, self.recipe.fusion.norm]
        return key("evaluate-1", self.subject.facts.fingerprint, str(self.subject.dtype), weights, *asked)


def _release() -> None:
    """Gives back what a model that nobody holds any more has taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _variants(fusion: Fusion, permuted: Fusion | None, recipe: Recipe) -> Iterator[_Variant]:
    for alpha in recipe.fusion.alpha:
        yield _Variant("fused", alpha, fusion)
        if "shrink" in recipe.evaluation.controls:
            yield _Variant("shrink", alpha, fusion)
        if permuted is not None:
            yield _Variant("permuted", alpha, permuted)


def _row(variant: _Variant, scores: Scores, baseline: Scores | None, recipe: Recipe, emit: Emit) -> dict[str, Any]:
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


def _warn(emit: Emit, where: str, message: str) -> None:
    emit(Warned("evaluate", f"{where}: {message}"))
