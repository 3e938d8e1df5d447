"""`alpha: auto`: a strength for every kind of projection, chosen on validation text.

Coordinate search from 0 everywhere. Each kind in turn climbs GRID as long as the text is better told, then tries its
neighbours once more beside what the other kinds have chosen. A step is kept only when it lowers the bits per byte and
the paired 95 % interval of that difference lies below 0: so a kind that does not help stays at 0, and on this text the
outcome cannot be worse than the target. What is clearly worse on the first LOOK texts is given up there. The hold-out
has no part in it.

A list of strengths is chosen from in the same way, for all kinds together: the one that tells the text best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, paired_interval
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.methods.method import Candidate, Merge, Shares
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, Logged
from tmerge_tui.recipe.evaluation import EVERY

GRID = (0.02, 0.05, 0.1, 0.2, 0.4)  # the paper's best values are 0.05 to 0.15, and it tries up to 0.5
LOOK = 50  # texts after which a strength whose interval lies above 0 is read no further
NEIGHBOURS = 2  # of a strength: one above, one below


@dataclass(frozen=True)
class Trial:
    """One kind at one strength, all others as they were at that moment; differences are to that moment's best."""

    kind: str
    alpha: float
    bits_per_byte: float
    against_target: float
    difference: float
    low: float
    high: float
    kept: bool
    texts: int  # that it was measured on: all of the validation text, or the first LOOK of it


@dataclass(frozen=True)
class Strength:
    """What was chosen, on how much text, and everything that was tried."""

    strengths: dict[str, float]
    target: float  # bits per byte of the validation text
    chosen: float
    texts: int
    trials: tuple[Trial, ...]

    @property
    def chosen_alpha(self) -> float:
        return split(self.strengths)[0]

    def candidate(self, merge: Merge) -> Candidate:
        """The merge at what was chosen."""
        return merge.candidate(*split(self.strengths))

    def plain(self) -> dict[str, Any]:
        """As report.json has it."""
        return asdict(self)


def search(target: Evaluator, merge: Merge, samples: Sequence[Sample], emit: Emit) -> Strength:
    """Chooses a strength for every kind of `merge` (stage "strength"). Raises what `score` raises."""
    kinds = merge.kinds
    most = 1 + len(kinds) * (len(GRID) + NEIGHBOURS)
    label = "Choosing the strength on validation text"
    with Progress(emit, "strength", label, most * len(samples), "texts") as progress:
        found = _Search(target, merge, samples, progress)
        for kind in kinds:
            found.climb(kind)
        for kind in kinds:
            found.refine(kind)
        progress.total = progress.done
    emit(Logged("info", f"strength: {', '.join(f'{kind} {alpha:g}' for kind, alpha in found.strengths.items())}"))
    return Strength(
        found.strengths, found.target.bits_per_byte, found.best.bits_per_byte, len(samples), tuple(found.trials)
    )


def choose(target: Evaluator, candidates: Sequence[Candidate], samples: Sequence[Sample], emit: Emit) -> Strength:
    """The best of the strengths that a recipe lists (stage "strength"); of equals the first. Raises as `score`."""
    label = "Choosing the strength on validation text"
    with Progress(emit, "strength", label, (1 + len(candidates)) * len(samples), "texts") as progress:
        baseline = target.scores(Variant("target"), samples, progress)
        scores = [target.scores(Variant("fused", one.alpha, one.update), samples, progress) for one in candidates]
    finite = [at for at, found in enumerate(scores) if math.isfinite(found.bits_per_byte)]
    best = min(finite, key=lambda at: scores[at].bits_per_byte, default=0)
    trials = []
    for at, (one, found) in enumerate(zip(candidates, scores, strict=True)):
        interval = paired_interval(found, baseline, target.options.resamples, target.seed)
        trials.append(Trial(EVERY, one.alpha, found.bits_per_byte, interval[0], *interval, at == best, len(samples)))
    chosen = trials[best]
    emit(Logged("info", f"strength: {chosen.alpha:g}, the best of {len(trials)} on {len(samples)} validation texts"))
    return Strength({EVERY: chosen.alpha}, baseline.bits_per_byte, chosen.bits_per_byte, len(samples), tuple(trials))


def split(strengths: Mapping[str, float]) -> tuple[float, Shares]:
    """(alpha, share of every kind in it): alpha is the largest strength; what is at 0 is left out."""
    alpha = max(strengths.values(), default=0.0)
    return alpha, {kind: strength / alpha for kind, strength in strengths.items() if strength}


class _Search:
    """The best strengths so far, and their scores."""

    def __init__(self, evaluator: Evaluator, merge: Merge, samples: Sequence[Sample], progress: Progress) -> None:
        self.evaluator, self.merge, self.samples, self.progress = evaluator, merge, samples, progress
        self.strengths = dict.fromkeys(merge.kinds, 0.0)
        self.trials: list[Trial] = []
        self.target = self.best = self._scores(self.strengths, samples)

    def climb(self, kind: str) -> None:
        """From weak to strong, until the text is told worse than by the best so far."""
        for place, alpha in enumerate(GRID, 1):
            if not self._try(kind, alpha).difference < 0:  # NaN ends it too
                self._spare(len(GRID) - place)
                return

    def refine(self, kind: str) -> None:
        """The next strength above and below that was not tried beside what the other kinds are at now."""
        steps = (0.0, *GRID)
        here = steps.index(self.strengths[kind])
        if not any(alpha for other, alpha in self.strengths.items() if other != kind):
            self._spare(NEIGHBOURS)  # nothing has changed since the climb
            return
        around = [steps[at] for at in (here + 1, here - 1) if 0 <= at < len(steps)]
        self._spare(NEIGHBOURS - len(around))
        for place, alpha in enumerate(around, 1):
            if self._try(kind, alpha).kept:
                self._spare(len(around) - place)
                return

    def _try(self, kind: str, alpha: float) -> Trial:
        strengths = {**self.strengths, kind: alpha}
        scores = self._scores(strengths, self.samples[:LOOK])
        trial = self._trial(kind, alpha, scores)
        if trial.low > 0:
            self.progress.total -= max(len(self.samples) - LOOK, 0)
        elif len(self.samples) > LOOK:
            scores = self._scores(strengths, self.samples, scores)
            trial = self._trial(kind, alpha, scores)
        self.trials.append(trial)
        if trial.kept:
            self.strengths, self.best = strengths, scores
        return trial

    def _trial(self, kind: str, alpha: float, scores: Scores) -> Trial:
        """Against the best and the target on the same texts, the first ones; only on all of them it may be kept."""
        texts = len(scores.bits)
        best, target = self.best.first(texts), self.target.first(texts)
        interval = paired_interval(scores, best, self.evaluator.options.resamples, self.evaluator.seed)
        difference, _, high = interval
        told = scores.bits_per_byte
        kept = difference < 0 and high < 0 and texts == len(self.samples)
        return Trial(kind, alpha, told, told - target.bits_per_byte, *interval, kept, texts)

    def _scores(self, strengths: dict[str, float], samples: Sequence[Sample], known: Scores | None = None) -> Scores:
        variant = Variant("target")
        if any(strengths.values()):
            alpha, shares = split(strengths)
            variant = Variant("fused", alpha, self.merge.at(alpha, shares))
        return self.evaluator.scores(variant, samples, self.progress, known)

    def _spare(self, trials: int) -> None:
        """Trials that need not be made: less is left to do."""
        self.progress.total -= trials * len(self.samples)
