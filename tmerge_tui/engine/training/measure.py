"""Trained tensors put to use: scored in the loaded target, compared, and folded into the target's format (eq. 18)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, paired_interval
from tmerge_tui.engine.evaluation.evaluator import Bench, Variant
from tmerge_tui.engine.methods.transport_merge.fusion import Fusion
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.arms import School, TrainedPiece, methods, result_method
from tmerge_tui.engine.training.distillation import ACROSS, SAME
from tmerge_tui.engine.weights.export import Folded, write_folded
from tmerge_tui.errors import MemoryShortage
from tmerge_tui.events import Emit, Metric
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.file_names import file_names
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir, key

STAGE = "measure_trained"
CONTRASTS = (  # who has to beat whom
    ("adapted", "fused"), ("adapted", "sft"), ("hinted", "adapted"), ("hinted", "hinted_permuted"), ("hinted", "sft"),
    ("distilled", "sft"), ("hinted", "distilled"), ("distilled_hinted", "distilled"),
)  # fmt: skip


@dataclass(frozen=True)
class TrainedVariant(Variant):
    """The target with the tensors of one training; `fusion` is the training itself, which names the content."""

    piece: TrainedPiece | None = None
    facts: ModelFacts | None = None
    checkpoint: Checkpoint | None = None

    def on(self, model: Any, norm: str) -> AbstractContextManager[None]:
        assert self.piece is not None and self.facts is not None and self.checkpoint is not None
        return installed(model, self.piece, self.facts, self.checkpoint)


def variant_of(piece: TrainedPiece, school: School) -> TrainedVariant:
    """One training as a variant of the target, for whatever is measured on it."""
    return TrainedVariant(piece.method, None, piece, piece, school.target, school.checkpoint)  # type: ignore[arg-type]


@contextmanager
@torch.no_grad()
def installed(model: Any, piece: TrainedPiece, facts: ModelFacts, checkpoint: Checkpoint) -> Iterator[None]:
    """Inside the block the target computes with the trained weights, rounded to the type of its file as folding does.

    Raises MemoryShortage when its layers are streamed from disk.
    """
    in_file, _ = file_names(model, checkpoint.names)
    names = {stored: name for name, stored in in_file.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own: dict[Any, Any] = {}
    for stored in piece.names:
        parameter = parameters[names[stored]]
        if parameter.is_meta:
            raise MemoryShortage(
                f"{facts.name} is streamed from disk, which trained weights are not",
                "room for the model",
                "raise memory: in the recipe, or leave adaptation out",
            )
        own.setdefault(parameter, parameter.detach().to("cpu", copy=True))
        parameter.copy_(piece.read(stored).to(checkpoint.info(stored).dtype).to(parameter.dtype))
    try:
        yield
    finally:
        for parameter, value in own.items():
            parameter.copy_(value)


def fold_trained(
    checkpoint: Checkpoint, piece: TrainedPiece, alpha: float, out: Path, run: RunDir, emit: Emit, progress: Progress
) -> Folded:
    """Writes the trained model as a plain checkpoint: what `fold` does, with every trained tensor patched."""
    patches = {name: (lambda W, name=name: piece.read(name).to(W.device)) for name in piece.names}
    named = key("fold-trained-1", checkpoint.fingerprint(), piece.key, out.name)
    return write_folded(checkpoint, patches, named, alpha, out, run, emit, progress)


def measure_trained(
    school: School,
    target: LoadedModel,
    trained: Sequence[TrainedPiece],
    fused: Fusion,
    alpha: float,  # of the fused model without training, the first of the recipe's
    holdout: Sequence[Sample],
    recipe: Recipe,
    run: RunDir,
    emit: Emit,
) -> dict[str, Any]:
    """`adaptation` of report.json (stage "measure_trained"): a row for every method, and who beats whom.

    A row's score is the mean over seeds, `spread` their standard deviation; intervals are paired over texts, with each
    text's bits averaged over seeds: they cover chance in the choice of texts, the spread covers the seeds.
    """
    bench = Bench(target, recipe, run, emit)
    total = (len(trained) + 2) * len(holdout)
    found: dict[str, list[Scores]] = {}
    with Progress(emit, STAGE, "Measuring trained models", total, "texts") as progress:
        baseline = bench.scores(Variant("target"), holdout, progress)
        found["fused"] = [bench.scores(Variant("fused", alpha, fused), holdout, progress)]
        for piece in trained:
            variant = variant_of(piece, school)
            found.setdefault(piece.method, []).append(bench.scores(variant, holdout, progress))
        rows = [_row("target", [baseline], None, None, recipe)]
        rows += [_row(m, s, alpha if m == "fused" else _alpha(m, school), baseline, recipe) for m, s in found.items()]
    for row in rows[2:]:
        interval = {name: row[name] for name in ("difference", "low", "high")}
        emit(Metric("bits_per_byte", row["model"], row["bits_per_byte"], "bits/byte", alpha=row["alpha"], **interval))
    contrasts = [
        {"model": ours, "against": theirs, **_interval(_mean(found[ours]), _mean(found[theirs]), recipe)}
        for ours, theirs in CONTRASTS
        if ours in found and theirs in found
    ]
    options = school.options
    first = trained[0].figures
    return {
        "method": options.method,
        "result": result_method(options),
        "seeds": list(options.seeds),
        "steps": first.steps,
        "tokens": first.tokens,
        "samples": len(school.lessons.samples),
        "distillation": (SAME if school.same_tokenizer else ACROSS) if school.source is not None else None,
        "rows": rows,
        "contrasts": contrasts,
        "trainings": [
            {
                "model": piece.method,
                "seed": piece.seed,
                "steps": piece.figures.steps,
                "tokens": piece.figures.tokens,
                "seconds": piece.figures.seconds,
                "loss": piece.figures.loss,
                "curve": [list(point) for point in piece.figures.curve],
                "validation": [list(point) for point in piece.figures.measured],
            }
            for piece in trained
        ],
    }


def _alpha(method: str, school: School) -> float | None:
    residual = {each.name: each.residual for each in methods(school.options)}
    return school.alpha if residual[method] else None


def _row(
    model: str, scores: Sequence[Scores], alpha: float | None, baseline: Scores | None, recipe: Recipe
) -> dict[str, Any]:
    values = [each.bits_per_byte for each in scores]
    interval: dict[str, Any] = {"difference": None, "low": None, "high": None}
    if baseline is not None:
        interval = _interval(_mean(scores), baseline, recipe)
    return {
        "model": model,
        "alpha": alpha,
        "bits_per_byte": mean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        "seeds": values,
        **interval,
    }


def _mean(scores: Sequence[Scores]) -> Scores:
    """Each text's bits averaged over seeds."""
    assert all(a.bytes == b.bytes for a, b in pairwise(scores))
    return Scores(tuple(mean(bits) for bits in zip(*(each.bits for each in scores), strict=True)), scores[0].bytes)


def _interval(a: Scores, b: Scores, recipe: Recipe) -> dict[str, float]:
    names = ("difference", "low", "high")
    return dict(zip(names, paired_interval(a, b, recipe.evaluation.resamples, recipe.seed), strict=True))
