"""Which model speaks, with which weights, and what it says of the texts that the target is trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.training.arms import Examples
from tmerge_tui.engine.training.teacher import TeacherCache, read_side, read_teacher
from tmerge_tui.engine.training.tune import Tuned
from tmerge_tui.engine.weights.install import installed
from tmerge_tui.events import Emit
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.run_folder import RunDir

MOST = 2048  # tokens that the source reads of a text at least; what lies behind is cut


@dataclass(frozen=True)
class Speaker:
    """A model as it was loaded, or with the weights that tuning has left."""

    model: LoadedModel
    content: tuple[Any, ...]  # names its weights
    inside: Callable[[Any], AbstractContextManager[None]]  # model -> context in which it has them

    @classmethod
    def of(cls, prepared: Prepared, party: Party, emit: Emit, tuned: Tuned | None = None) -> Speaker:
        model = prepared.model(party, emit)
        content = (party.facts.fingerprint, str(model.dtype))
        if tuned is None or not tuned.helped:
            return cls(model, content, nullcontext)
        return cls(model, (*content, tuned.piece.content), partial(installed, update=tuned.piece))


def what_is_said(
    prepared: Prepared,
    party: Party,
    examples: Examples,
    run: RunDir,
    emit: Emit,
    stage: str,
    tuned: Tuned | None = None,  # whose weights the model has while it reads
) -> TeacherCache:
    """What one of the two models says of the texts, from its cache. Raises what `read_teacher` raises."""
    recipe, target = prepared.recipe, prepared.target
    options = recipe.adaptation
    assert options is not None
    mode, samples = recipe.calibration.chat_template, examples.samples
    ours = read_side(samples, target.tokenizer, target.facts.vocab, 0, mode, examples.examples)
    theirs = ours
    if party is not target:
        longest = 2 * max(len(example.ids) for example in examples.examples)
        theirs = read_side(samples, party.tokenizer, party.facts.vocab, max(longest, MOST), mode)
    speaker, teacher = Speaker.of(prepared, party, emit, tuned), options.teaching
    content, batch = list(speaker.content), teacher.batch_size
    return read_teacher(
        speaker.model, content, theirs, ours, samples, teacher, mode, batch, run, emit, stage, speaker.inside
    )
