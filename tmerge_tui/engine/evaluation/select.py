"""Which model becomes model/ (stage "select"): the best of all candidates on validation text, the target among them.

The hold-out has no part in it. A candidate has to beat the target by `evaluation.margin`: below that the two are equal,
and the target, which is proven, stays. With `evaluation.general.bound` a candidate that needs so many bits per byte
more than the target on general text, a part of it that is not measured on later, is not chosen, whatever it gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.weights.update import Change
from tmerge_tui.events import Emit, Logged
from tmerge_tui.models.checkpoint import Checkpoint

STAGE = "select"


@dataclass(frozen=True)
class Unchanged:
    """The target itself, as an update of it."""

    target: Checkpoint

    @property
    def key(self) -> tuple[Any, ...]:
        return False, "target"

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def change(self, name: str, stored: Tensor) -> Change:
        raise KeyError(name)


@dataclass(frozen=True)
class Selection:
    """What was chosen, and every candidate's score; the target's is the first."""

    variant: Variant
    rows: tuple[dict[str, Any], ...]
    texts: int
    margin: float
    bound: float | None = None  # of the loss on general text
    general_texts: int = 0  # that it was tried on

    def plain(self) -> dict[str, Any]:
        """As report.json has it."""
        return {
            "model": self.variant.model,
            "alpha": self.variant.alpha,
            "rows": list(self.rows),
            "texts": self.texts,
            "margin": self.margin,
            "bound": self.bound,
            "general_texts": self.general_texts,
        }


def select(
    evaluator: Evaluator,
    candidates: Sequence[Variant],
    samples: Sequence[Sample],
    emit: Emit,
    general: Sequence[Sample] = (),  # what the bound is tried on; none without one
) -> Selection:
    """Scores the target and every candidate on validation text; of equals the first. Raises what `score` raises.

    A row of the selection has in `general` what its candidate does to general text, {"difference", "low", "high",
    "kept": whether that is within the bound}; None without one.
    """
    options = evaluator.options
    margin, bound = options.margin, options.general.bound if options.general else None
    target = Variant("target")
    best, rows = target, []
    total = (1 + len(candidates)) * (len(samples) + len(general))
    with Progress(emit, STAGE, "Choosing on validation text", total, "texts") as progress:
        baseline = evaluator.scores(target, samples, progress)
        rows.append(_row(target, baseline.bits_per_byte, None))
        lowest = baseline.bits_per_byte - margin
        elsewhere = evaluator.scores(target, general, progress) if general else None
        for candidate in candidates:
            scores = evaluator.scores(candidate, samples, progress)
            between = evaluator.interval(scores, baseline)
            rows.append(_row(candidate, scores.bits_per_byte, between) | {"margin": margin})
            if elsewhere is not None and bound is not None:
                lost = evaluator.interval(evaluator.scores(candidate, general, progress), elsewhere)
                rows[-1]["general"] = lost | {"kept": lost["difference"] <= bound}
                if not rows[-1]["general"]["kept"]:  # NaN too
                    continue
            if scores.bits_per_byte < lowest:  # never true of NaN
                best, lowest = candidate, scores.bits_per_byte
    emit(Logged("info", f"chosen on {len(samples)} validation texts: {best.name}"))
    return Selection(best, tuple(rows), len(samples), margin, bound, len(general))


def _row(variant: Variant, value: float, between: dict[str, float] | None) -> dict[str, Any]:
    nothing = {"difference": None, "low": None, "high": None}
    told = {"model": variant.model, "alpha": variant.alpha, "bits_per_byte": value, "general": None}
    return told | (between or nothing)
