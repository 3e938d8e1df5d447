"""`epochs: auto`: as many passes over the training text as validation text gains by.

The rate rises during `warmup` of the first pass and then stays, since nothing that depends on a length is known yet.
After every pass the model tells the validation text; the end is reached when `passes` of them in a row have not lowered
the best by `gain`, or when the recipe allows no more. From the best moment, weights, optimiser and order of texts as
they were, the rate then falls linearly to 0 during DECAY of the steps that led there. What tells the validation text
best is kept, with or without that fall. The hold-out has no part in it.

All that is decided follows from the measurements in the checkpoints: resumed anywhere, a training ends in the same
weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tmerge_tui.engine.training.checkpoints import STATE, last_checkpoint
from tmerge_tui.engine.training.examples import Block
from tmerge_tui.engine.training.loss import Term
from tmerge_tui.engine.training.trainer import (
    TOLD,
    Counter,
    LossTrainer,
    Step,
    Trained,
    arguments_of,
    make_trainer,
    processes,
    steps_of,
    steps_of_pass,
)
from tmerge_tui.errors import NumericsError
from tmerge_tui.recipe.adaptation import Adaptation

PASSES = 2  # without a gain, after which a training ends, unless the recipe says it
DECAY = 0.2  # of the steps to the best moment, in which the rate falls to 0
FALL = "decay"  # folder of the checkpoints of that part

Curve = Sequence[tuple[int, float]]  # (step, bits per byte of the validation text), from step 0


@dataclass(frozen=True)
class Patience:
    """How a training with `epochs: auto` is judged, and who is told."""

    told: Callable[[Any], float]  # model -> bits per byte of the validation text
    passes: int
    gain: float  # bits per byte
    report: Callable[[int, float, str], None]  # step, bits per byte, "" | "best" | "decayed"


def has_ended(curve: Curve, passes: int, gain: float) -> bool:
    """Whether `passes` measurements in a row have not lowered the best by `gain`."""
    lowest, waited = _finite(curve[0][1]), 0
    for _, value in curve[1:]:
        waited = 0 if _finite(value) < lowest - gain else waited + 1
        lowest = min(lowest, _finite(value))
        if waited == passes:
            return True
    return False


def best_of(curve: Curve) -> tuple[int, float]:
    """The lowest measurement behind the start. Raises NumericsError when none is finite."""
    found = [point for point in curve[1:] if math.isfinite(point[1])]
    if not found:
        raise NumericsError(
            "no pass leaves a model with a finite validation score",
            "a loss that falls",
            "use a smaller adaptation.learning_rate",
        )
    return min(found, key=lambda point: point[1])


def rate_at(step: int, warmup: int, best: int | None = None, fall: int = 0) -> float:
    """Share of the learning rate: rising for `warmup` steps, then 1; from step `best` on falling to 0 in `fall`."""
    if best is not None and step > best:
        return max(0.0, (best + fall - step) / fall)
    return step / warmup if step < warmup else 1.0


def train_patiently(
    learner: Any,  # what trains: the model, or with low-rank updates in it
    model: Any,  # what is measured
    blocks: Sequence[Block],
    options: Adaptation,
    seed: int,
    terms: Sequence[Term],
    folder: Path,  # of the checkpoints; an unfinished training there is taken up; removed by the caller
    device: Any,
    patience: Patience,
    report: Callable[[Step], None],
    warn: Callable[[str], None],
) -> Trained:
    """Trains in place and leaves the best weights. Raises NumericsError, StorageError as `train`."""
    began, counter = time.monotonic(), Counter()

    def told() -> float:
        with _measured(model):
            return patience.told(model)

    def trainer_in(place: Path, steps: int, rate: Callable[[int], float], **own: Any) -> LossTrainer:
        # steps between checkpoints as in the state that is taken up, which would be warned of otherwise
        kept = {"max_steps": steps, "save_steps": 1000, "eval_steps": 1000}
        arguments = arguments_of(options, seed, place, device, most, **kept, **own)
        trainer = make_trainer(learner, arguments, blocks, blocks[:1], options, terms, counter, report)
        trainer.rate, trainer.told = rate, told
        return trainer

    most = steps_of(options, len(blocks))
    steady, whole = _lengths(options, len(blocks))
    warmup = math.ceil(options.warmup * whole)
    trainer = trainer_in(
        folder, steady, lambda step: rate_at(step, warmup),
        save_strategy="epoch", eval_strategy="epoch", save_total_limit=2, metric_for_best_model=TOLD,
        load_best_model_at_end=True, greater_is_better=False,
    )  # fmt: skip
    start = told()
    patience.report(0, start, "")
    watch = _Watch(start, patience)
    trainer.add_callback(watch)
    taken_up = last_checkpoint(folder, warn)
    history = (
        [] if taken_up is None else json.loads((Path(taken_up) / STATE).read_text(encoding="utf-8"))["log_history"]
    )
    curve = watch.curve(history)
    if not (curve[-1][0] >= steady or has_ended(curve, patience.passes, patience.gain)):
        trainer.train(resume_from_checkpoint=taken_up)
        counter.require_finite()
        curve = watch.curve(trainer.state.log_history)

    best, lowest = best_of(curve)
    fall = max(1, round(DECAY * best))
    trainer = trainer_in(folder / FALL, best + fall, lambda step: rate_at(step, warmup, best, fall), save_total_limit=1)
    trainer.add_callback(_Forget())
    checkpoint = folder / f"checkpoint-{best}"
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / FALL, warn) or str(checkpoint))
    counter.require_finite()
    decayed, steps = told(), best + fall
    patience.report(steps, decayed, "decayed" if decayed < lowest else "")
    if not decayed < lowest:
        steps, counter.tokens = best, trainer.restore(checkpoint)
        counter.curve = [point for point in counter.curve if point[0] <= best]
    loss = counter.curve[-1][1] if counter.curve else math.nan
    seconds = time.monotonic() - began
    return Trained(steps, counter.tokens, loss, seconds, tuple(counter.curve), (), tuple(curve), decayed)


def _lengths(options: Adaptation, blocks: int) -> tuple[int, int]:
    """(steps before the rate falls, at most; steps of a pass), on as many devices as train together."""
    whole = steps_of_pass(options, blocks, processes())
    return max(1, int(options.max_epochs / (1 + DECAY))) * whole, whole


class _Watch(TrainerCallback):
    """Ends the training once validation text gains no more."""

    def __init__(self, start: float, patience: Patience) -> None:
        self.start, self.patience = start, patience

    def curve(self, history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
        return [(0, self.start), *((entry["step"], entry[TOLD]) for entry in history if TOLD in entry)]

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        curve = self.curve(state.log_history)
        step, value = curve[-1]
        self.patience.report(step, value, "best" if value <= min(_finite(told) for _, told in curve) else "")
        if has_ended(curve, self.patience.passes, self.patience.gain):
            control.should_training_stop = True


class _Forget(TrainerCallback):
    """The best checkpoint of the part before is not one of this part."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.best_model_checkpoint = state.best_global_step = state.best_metric = None


@contextmanager
def _measured(model: Any) -> Any:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
