"""How long each part of a recipe takes, from the seconds that `tmerge scout` has seen both models take."""

from __future__ import annotations

from dataclasses import dataclass

from tmerge_tui.engine.preflight.estimate import tokens_learned, tokens_searched
from tmerge_tui.engine.preflight.scouted import Pace
from tmerge_tui.engine.report.names import title
from tmerge_tui.engine.training.arms import arms
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe
from tmerge_tui.recipe.adaptation import WRITTEN_CONTROLS

TAUGHT = 1.2  # a step with events in its loss, over one without (tests/benchmarks/distillation.py: at most 1.25)
WRITING = 12.0  # passes of a token that is read, which one that is written costs; on the demo pair, two cores
UNMEASURED = 3.0  # forward passes that a step of training takes, where it was not tried


@dataclass(frozen=True)
class ArmTime:
    """`name` is the arm's in report.json, or that of a stage; `seeds` trainings are in the seconds."""

    name: str
    title: str
    seconds: float
    seeds: int = 1


def arm_times(recipe: Recipe, pace: Pair[Pace], each: float, texts: int, total: float) -> list[ArmTime]:
    """In the order of the run; `each` is a text's tokens, `texts` those to train on, `total` seconds of the whole run.

    The first is everything that is no training: aligning, fusing, measuring.
    """
    options = recipe.adaptation
    if options is None:
        return [ArmTime("merge", "aligning, fusing, measuring", total)]
    learned = tokens_learned(recipe, each, texts)
    ours, theirs = (_training(one) for _, one in pace.items())
    found = []
    if options.tuned:
        tokens = learned * options.teaching.tune_epochs / options.passes
        found.append(ArmTime("tune", "the source learns the text", tokens / 1000 * theirs))
    if options.distilled:
        read = each * min(options.samples, texts)
        found.append(ArmTime("teacher", "the source reads the text", read / 1000 * pace.source.forward))
    if options.searched:
        tokens = tokens_searched(recipe, learned, each)
        found.append(ArmTime("search", f"choosing {', '.join(options.searched)}", tokens / 1000 * ours))
    seeds = len(options.seeds)
    for arm in arms(options):
        factor = TAUGHT if arm.terms else 1.0
        found.append(ArmTime(arm.name, title(arm.name), seeds * factor * learned / 1000 * ours, seeds))
    if options.synthetic is not None:
        asked = options.synthetic
        tokens = asked.asked * (asked.max_tokens * WRITING + asked.beginning * each)
        both = pace.source.forward + pace.target.forward
        found.append(ArmTime("write", "source and target write text", tokens / 1000 * both))
        first = asked.keep * asked.asked * (asked.max_tokens + asked.beginning * each) * asked.epochs
        for name in ("synthetic", *WRITTEN_CONTROLS):
            seconds = seeds * TAUGHT * (learned + first) / 1000 * ours
            found.append(ArmTime(name, title(name), seconds, seeds))
    rest = max(0.0, total - sum(one.seconds for one in found))
    return [ArmTime("merge", "aligning, fusing, measuring", rest), *found]


def _training(pace: Pace) -> float:
    return UNMEASURED * pace.forward if pace.training is None else pace.training
