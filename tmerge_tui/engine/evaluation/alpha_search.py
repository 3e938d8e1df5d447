"""`alpha: auto`: a strength for every kind of projection, chosen on validation text.

Coordinate search from 0 everywhere. Each kind in turn climbs GRID as long as the text is better told, then tries its
neighbours once more beside what the other kinds have chosen. A step is kept only when it lowers the bits per byte and
the paired 95 % interval of that difference lies below 0: so a kind that does not help stays at 0, and on this text the
outcome cannot be worse than the target. The hold-out has no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, paired_interval
from tmerge_tui.engine.evaluation.evaluator import Bench, Variant
from tmerge_tui.engine.methods.transport_merge.fusion import Fusion
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, Logged
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir

GRID = (0.02, 0.05, 0.1, 0.2, 0.4)  # the paper's best values are 0.05 to 0.15, and it tries up to 0.5
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


@dataclass(frozen=True)
class Strength:
    """What was chosen, on how much text, and everything that was tried."""

    strengths: dict[str, float]
    target: float  # bits per byte of the validation text
    chosen: float
    texts: int
    trials: tuple[Trial, ...]

    def plain(self) -> dict[str, Any]:
        """As report.json has it."""
        return asdict(self)


def search(
    target: LoadedModel, fusion: Fusion, samples: Sequence[Sample], recipe: Recipe, run: RunDir, emit: Emit
) -> Strength:
    """Chooses a strength for every kind of `fusion` (stage "strength"). Raises what `score` raises."""
    kinds = list(dict.fromkeys(line["kind"] for line in fusion.figures()))
    most = 1 + len(kinds) * (len(GRID) + NEIGHBOURS)
    label = "Choosing the strength on validation text"
    with Progress(emit, "strength", label, most * len(samples), "texts") as progress:
        found = _Search(Bench(target, recipe, run, emit), fusion, samples, recipe, progress)
        for kind in kinds:
            found.climb(kind)
        for kind in kinds:
            found.refine(kind)
        progress.total = progress.done
    emit(Logged("info", f"strength: {', '.join(f'{kind} {alpha:g}' for kind, alpha in found.strengths.items())}"))
    return Strength(
        found.strengths, found.target.bits_per_byte, found.best.bits_per_byte, len(samples), tuple(found.trials)
    )


class _Search:
    """The best strengths so far, and their scores."""

    def __init__(
        self, bench: Bench, fusion: Fusion, samples: Sequence[Sample], recipe: Recipe, progress: Progress
    ) -> None:
        self.bench, self.fusion, self.samples, self.recipe, self.progress = bench, fusion, samples, recipe, progress
        self.strengths = dict.fromkeys((line["kind"] for line in fusion.figures()), 0.0)
        self.trials: list[Trial] = []
        self.target = self.best = self._scores(self.strengths)

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
        scores = self._scores(strengths)
        interval = paired_interval(scores, self.best, self.recipe.evaluation.resamples, self.recipe.seed)
        difference, _, high = interval
        told = scores.bits_per_byte
        trial = Trial(kind, alpha, told, told - self.target.bits_per_byte, *interval, difference < 0 and high < 0)
        self.trials.append(trial)
        if trial.kept:
            self.strengths, self.best = strengths, scores
        return trial

    def _scores(self, strengths: dict[str, float]) -> Scores:
        variant = Variant("target")
        if any(strengths.values()):
            fusion, alpha = self.fusion.at(strengths)
            variant = Variant("fused", alpha, fusion)
        return self.bench.scores(variant, self.samples, self.progress)

    def _spare(self, trials: int) -> None:
        """Trials that need not be made: less is left to do."""
        self.progress.total -= trials * len(self.samples)
