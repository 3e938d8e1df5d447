"""`learning_rate: auto` and `distill_weight: auto`, chosen by short trainings on validation text (stage "search").

The rate first, with the next token alone, so that what distillation is compared with has its best rate: from 1e-4 in
steps of the square root of 10 walking downhill, at most RATES trainings of at most STEPS steps, each with its own whole
schedule. Then the share of the teacher among WEIGHTS at that rate. Every training starts from the untouched target,
reads the training blocks and is judged by the lowest next-token loss of the validation blocks on its way; the hold-out
has no part in it. Short trainings like higher rates than long ones: the choice is good to a factor of about 3.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.arms import Arm, Setup, piece_of, train_arm
from tmerge_tui.engine.training.examples import Block
from tmerge_tui.engine.training.fit import require_one_process
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.trainer import Step, steps_of
from tmerge_tui.errors import NumericsError
from tmerge_tui.events import Emit, Logged
from tmerge_tui.run_folder import key

STAGE = "search"
FIRST = 1e-4
RATES = 5
STEPS = 60
WEIGHTS = (0.3, 0.5, 0.7)
UNUSED = 0.5  # a weight where nothing is distilled


@dataclass(frozen=True)
class Trial:
    """One short training; the weight is None for the next token alone, the loss where it was not finite."""

    learning_rate: float
    weight: float | None
    loss: float | None  # nats a token of the validation text


@dataclass(frozen=True)
class Searched:
    """What was chosen, and the curve behind it."""

    learning_rate: float
    distill_weight: float
    steps: int
    texts: int  # of the validation text
    trials: tuple[Trial, ...]

    def plain(self) -> dict[str, Any]:
        """As report.json has it."""
        return asdict(self)


def search(setup: Setup, validation: Sequence[Block], texts: int) -> Searched:
    """Chooses what the recipe leaves to `auto`. Raises NumericsError when no training keeps a finite loss,
    UsageError under a launcher."""
    options = setup.options
    searched = options.searched
    steps = min(STEPS, steps_of(options, len(setup.examples.blocks)))
    rate, weight = (
        0.0 if value == "auto" else float(value) for value in (options.learning_rate, options.distill_weight)
    )
    most = (RATES if "learning_rate" in searched else 0) + (len(WEIGHTS) if "distill_weight" in searched else 0)
    trials: list[Trial] = []
    with Progress(setup.emit, STAGE, "Choosing on validation text", most * steps, "steps") as progress:

        def loss_of(rate: float, weight: float | None) -> float:
            found = _loss(setup, validation, rate, weight, steps, progress)
            trials.append(Trial(rate, weight, found))
            return math.inf if found is None else found

        if "learning_rate" in searched:
            rate = rate_at(downhill(lambda place: loss_of(rate_at(place), None)))
            progress.total -= (RATES - len(trials)) * steps
        if "distill_weight" in searched:
            weight = min(WEIGHTS, key=lambda weight: loss_of(rate, weight))
    if not any(trial.loss is not None for trial in trials):
        raise NumericsError(
            f"no short training kept a finite loss at learning rates from {min(t.learning_rate for t in trials):g}",
            "a loss that falls",
            "give adaptation.learning_rate as a number",
        )
    _say(setup.emit, searched, rate, weight)
    return Searched(rate, weight or UNUSED, steps, texts, tuple(trials))


def rate_at(place: int) -> float:
    """On the grid, with two digits: ..., 3.2e-5, 1e-4, 3.2e-4, 1e-3, ..."""
    return float(f"{FIRST * 10 ** (place / 2):.1e}")


def downhill(loss: Callable[[int], float], most: int = RATES) -> int:
    """The lowest place of a walk from 0 and 1 in the direction that falls, of at most `most` places."""
    tried = {place: loss(place) for place in (0, 1)}
    here, step = (1, 1) if tried[1] < tried[0] else (0, -1)
    while len(tried) < most:
        tried[here + step] = loss(here + step)
        if not (tried[here + step] < tried[here] or math.isinf(tried[here])):
            break
        here += step
    return min(tried, key=lambda place: tried[place])


def _loss(
    setup: Setup, validation: Sequence[Block], rate: float, weight: float | None, steps: int, progress: Progress
) -> float | None:
    """Of one short training, from the run folder where it is there already."""
    held = key([(block.ids, block.labels) for block in validation])
    options = setup.options
    short = replace(
        setup,
        options=options.model_copy(
            # measured on the way, never stopped before its end
            update={"learning_rate": rate, "distill_weight": weight or UNUSED, "max_steps": steps, "patience": steps}
            | ({"epochs": 1.0} if options.patient else {})
        ),
        examples=replace(setup.examples, validation=tuple(validation), key=key(setup.examples.key, held)),
    )
    arm, seed = Arm("search", terms=() if weight is None else ("source",)), setup.options.seeds[0]
    piece = piece_of(short, arm, seed)
    content = piece.stem.split("-")[-1]
    kept = setup.run.piece("search", content, ".json")
    if kept.exists():
        progress.skip(steps)
        found: float | None = json.loads(kept.read_text(encoding="utf-8"))["loss"]
        return found
    require_one_process(f"{' and '.join(setup.options.searched)}: auto")
    done = progress.done
    told = f"learning rate {rate:g}" + ("" if weight is None else f", weight {weight:g}")

    def report(step: Step) -> None:
        progress.advance(max(0, step.step - (progress.done - done)), told)

    measured: tuple[tuple[int, float], ...] = ()
    try:
        train_arm(short, arm, seed, piece, report)
        measured = TrainedPiece(arm.name, seed, piece, content, setup.checkpoint, setup.norm).figures.measured
    except NumericsError:
        shutil.rmtree(setup.run.state / f"training-{piece.stem}", ignore_errors=True)
    progress.advance(steps - (progress.done - done), told)
    losses = [loss for _, loss in measured if math.isfinite(loss)]
    lowest = min(losses, default=None)
    setup.run.save_json(kept, {"loss": lowest, "validation": measured, "learning_rate": rate, "weight": weight})
    piece.unlink(missing_ok=True)
    return lowest


def _say(emit: Emit, searched: Sequence[str], rate: float, weight: float) -> None:
    chosen = {"learning_rate": rate, "distill_weight": weight}
    emit(Logged("info", "chosen on validation text: " + ", ".join(f"{name} {chosen[name]:g}" for name in searched)))
