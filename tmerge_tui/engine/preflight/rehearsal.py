"""One model rehearsed for `tmerge scout`: it reads the validation text, learns for a few steps, and reads it again.

What it learns is thrown away with the model. Where training does not fit the memory it only reads, and says so. The
seconds are those of the model itself on this device, which is what an estimate for a long run needs to know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, score, text_of
from tmerge_tui.engine.prepared import Party, open_model
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.examples import IGNORED, Block, collate
from tmerge_tui.engine.training.tune import PARAMETER, cut_blocks, embeddings
from tmerge_tui.errors import DataError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.forward import release
from tmerge_tui.models.loading import free_memory
from tmerge_tui.quantities import size
from tmerge_tui.recipe import Recipe
from tmerge_tui.recipe.adaptation import Adaptation

STEPS, BATCH = 40, 8  # of tuning, and texts in each
LEAST = 4  # steps that are made however long they take
LENGTH = 256  # tokens of a text that are learnt, at most
BUDGET = 15.0  # seconds after which tuning takes no more steps than LEAST
RATE = 0.048  # over the width: 5e-4 where the hidden size is 96, 8e-5 at 576, 1.2e-5 at 4096
LOGITS = 1 << 28  # bytes of logits in one pass of tuning, at most, unless one text alone has more


@dataclass(frozen=True)
class Rehearsal:
    """What one model made of the texts. Times are seconds for 1,000 tokens."""

    before: Scores
    after: Scores | None  # None: it was not tuned
    steps: int
    learning_rate: float
    forward: float
    training: float | None  # forward, backward and the step of AdamW
    why_not: str = ""  # it was not tuned

    @property
    def best(self) -> Scores:
        """The better one of the two: a training that made it worse would not be kept."""
        if self.after is None or self.after.bits_per_byte > self.before.bits_per_byte:
            return self.before
        return self.after


def rehearse(
    recipe: Recipe,
    party: Party,
    held: Sequence[Sample],  # measured
    learnt: Sequence[Sample],  # tuned on
    device: torch.device,
    emit: Emit,
) -> Rehearsal:
    """Stage: scout_source or scout_target. The source's embeddings and head stay as they are, as `tune` has it.

    Raises DataError, ModelError, MemoryShortage.
    """
    stage = f"scout_{party.role}"
    subject = open_model(recipe, party, device, emit)
    room = recipe.memory_bytes or free_memory(device)
    needed = PARAMETER * party.facts.parameters
    with Progress(emit, stage, f"Trying {party.facts.label}", 2 * len(held) + STEPS * BATCH, "texts") as progress:
        model: Any = subject.load()
        try:
            before, forward = _read(recipe, party, model, held, progress, emit, stage)
            found = Rehearsal(before, None, 0, RATE / party.facts.hidden, forward, None)
            if needed > room:
                found = replace(found, why_not=f"tuning takes {size(needed)} of memory, {size(room)} are free for it")
            else:
                found = _tuned(recipe, party, model, held, learnt, subject.dtype, found, progress, emit, stage)
        finally:
            del model
            release()
        progress.total = progress.done
    if found.why_not:
        emit(Warned(stage, f"{party.facts.label} was not tuned: {found.why_not}"))
    return found


def _read(
    recipe: Recipe, party: Party, model: Any, held: Sequence[Sample], progress: Progress, emit: Emit, stage: str
) -> tuple[Scores, float]:
    """(scores, seconds for 1,000 tokens); one text is read beforehand, to warm up."""
    batch, length = recipe.evaluation.batch_size, recipe.calibration.max_length
    tokens = sum(len(text_of(sample.plain, party.tokenizer, length).ids) for sample in held)

    def warn(message: str) -> None:
        emit(Warned(stage, message))

    def read(samples: Sequence[Sample], advance: int) -> Scores:
        return score(model, party.tokenizer, samples, batch, length, warn, lambda n: progress.advance(n * advance))

    scored = [sample for sample in held if text_of(sample.plain, party.tokenizer, length).bytes]
    read(scored[:1] or held, 0)
    began = _now(model.device)
    scores = read(held, 1)
    return scores, 1000 * (_now(model.device) - began) / max(tokens, 1)


def _tuned(
    recipe: Recipe,
    party: Party,
    model: Any,
    held: Sequence[Sample],
    learnt: Sequence[Sample],
    dtype: torch.dtype,
    found: Rehearsal,
    progress: Progress,
    emit: Emit,
    stage: str,
) -> Rehearsal:
    """`found` with what a few steps do, in float32 and read again in the model's own type."""
    padded = Adaptation(packing="pad", block_length=min(LENGTH, recipe.calibration.max_length))
    try:
        blocks = cut_blocks(learnt, party.tokenizer, padded, recipe.calibration.chat_template)
    except DataError as error:
        return replace(found, why_not=error.found)
    frozen = embeddings(model) if party.role == "source" else ()
    with torch.enable_grad(), _trainable(model.float(), frozen) as parameters:
        rows = max(1, LOGITS // (4 * max(len(block.ids) for block in blocks) * party.facts.vocab))
        steps, seconds, finite = _learn(model, parameters, blocks, rows, found.learning_rate, progress)
    if not finite:
        return replace(found, training=seconds, why_not=f"its loss was not finite at rate {found.learning_rate:g}")
    model.to(dtype)
    after, _ = _read(recipe, party, model, held, progress, emit, stage)
    return replace(found, after=after, steps=steps, training=seconds)


@contextmanager
def _trainable(model: Any, frozen: Any) -> Iterator[list[Tensor]]:
    parameters = [p for name, p in model.named_parameters() if name not in frozen]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield parameters
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _learn(
    model: Any, parameters: Sequence[Tensor], blocks: Sequence[Block], rows: int, rate: float, progress: Progress
) -> tuple[int, float, bool]:
    """(steps made, seconds for 1,000 tokens, whether the loss stayed finite), the rate falling to 0.

    How many steps the budget allows is known after the second, the first one that is not a warm-up.
    """
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    device, steps, step = model.device, STEPS, 0
    times: list[tuple[float, int]] = []
    while step < steps:
        began = _now(device)
        batch = [blocks[(step * BATCH + i) % len(blocks)] for i in range(BATCH)]
        counted = sum(label != IGNORED for block in batch for label in block.labels[1:])
        total = 0.0
        for start in range(0, BATCH, rows):
            loss = _loss(model, batch[start : start + rows], device) / max(counted, 1)
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            return step, _pace(times), False
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        times.append((_now(device) - began, sum(len(block.ids) for block in batch)))
        if step == 2:
            steps = max(LEAST, min(STEPS, int(BUDGET / max(times[1][0], 1e-9))))
            progress.total -= (STEPS - steps) * BATCH
        progress.advance(BATCH, f"step {step} of {steps}, loss {total:.3f}")
    return steps, _pace(times), True


def _loss(model: Any, blocks: Sequence[Block], device: torch.device) -> Tensor:
    """Nats of all labels, summed."""
    given = collate(blocks)
    ids, mask, labels = (given[name].to(device) for name in ("input_ids", "attention_mask", "labels"))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _pace(times: Sequence[tuple[float, int]]) -> float:
    """Seconds for 1,000 tokens; the first step, which warms up, counts only where it is alone."""
    counted = times[1:] or times
    return 1000 * sum(seconds for seconds, _ in counted) / max(sum(tokens for _, tokens in counted), 1)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
