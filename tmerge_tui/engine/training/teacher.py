"""The teacher cache (stage "teacher"): the source reads the training texts once, and only its events are kept.

About 100 to 300 bytes a position, in pieces of CHUNK_SAMPLES texts that do not depend on the batch size. Seeds, epochs,
weights, placebos and later runs take them up; the source is out of memory while the target trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tmerge_tui.engine.activations.pooling import place
from tmerge_tui.engine.data.corpus import Sample, render, uses_template
from tmerge_tui.engine.data.vocabulary import Vocabulary, read_vocabulary, token_ends
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.boundaries import Pairing, Span, pair, without_blanks
from tmerge_tui.engine.training.byte_events import event_loss, teach
from tmerge_tui.engine.training.event_cache import Events, collate_events, from_tensors, to_tensors
from tmerge_tui.engine.training.event_space import EventSpace
from tmerge_tui.engine.training.examples import IGNORED, Example, read_examples
from tmerge_tui.errors import DataError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.forward import Batches, LoadedModel, padded, release
from tmerge_tui.recipe.adaptation import Teacher
from tmerge_tui.run_folder import RunDir, key

STAGE = "teacher"
CHUNK_SAMPLES = 64
LOGITS = 1 << 29  # bytes of logits of one forward pass of the source, at most, unless one text alone has more
TRIED = 20  # texts that the check reads


@dataclass(frozen=True)
class Reading:
    """One side of the comparison: a model's tokenizer, its vocabulary and the texts in its tokens."""

    tokenizer: Any
    vocabulary: Vocabulary
    examples: Sequence[Example]


@dataclass(frozen=True)
class TeacherCache:
    """Events of every training text, on disk."""

    key: str
    pieces: tuple[Path, ...]
    space: EventSpace
    run: RunDir

    @cached_property
    def events(self) -> list[Events]:
        """Of every text, in order. Raises StorageError, DataError."""
        return [text for path in self.pieces for text in from_tensors(self.run.load(path)[0])]


def read_side(
    samples: Sequence[Sample],
    tokenizer: Any,
    rows: int,
    length: int,
    mode: str,
    examples: Sequence[Example] | None = None,
) -> Reading:
    """`rows` of the model's head; the texts as the target's examples have them, or read anew. Raises ModelError."""
    found = read_examples(samples, tokenizer, length, mode) if examples is None else examples
    return Reading(tokenizer, read_vocabulary(tokenizer, rows), found)


def check_teacher(samples: Sequence[Sample], sides: Sequence[tuple[Any, int]], mode: str) -> None:
    """Whether both tokenizers ((tokenizer, rows of the head): source's, target's) read the bytes of some texts.

    Raises DataError or ModelError with the reason: normalisers, tokens that are not bytes, nothing to compare.
    """
    source, target = (read_side(samples[:TRIED], tokenizer, rows, 0, mode) for tokenizer, rows in sides)
    if not any(len(_pairing(sample, i, source, target, mode, True).ours) for i, sample in enumerate(samples[:TRIED])):
        raise DataError(
            "the two tokenizers end no token at the same place of the training text",
            "texts that both models read",
            "leave out compare: distill and adaptation.teacher",
        )


def paired_positions(
    samples: Sequence[Sample], sides: Sequence[tuple[Any, int]], mode: str, options: Teacher
) -> tuple[int, int]:
    """(positions at which the source teaches, positions at which the target predicts); `sides` as in `check_teacher`.

    Raises DataError or ModelError with the reason.
    """
    source, target = (read_side(samples, tokenizer, rows, 0, mode) for tokenizer, rows in sides)
    every = options.positions == "every"
    found = [_pairing(one, i, source, target, mode, every, options.blanks) for i, one in enumerate(samples)]
    return sum(len(each.ours) for each in found), sum(max(0, len(one.ids) - 1) for one in target.examples)


def read_teacher(
    source: LoadedModel,
    content: Sequence[Any],  # what names the source's weights
    theirs: Reading,
    ours: Reading,
    samples: Sequence[Sample],
    options: Teacher,
    mode: str,
    batch_size: int,
    run: RunDir,
    emit: Emit,
    stage: str = STAGE,
    inside: Any = nullcontext,  # model -> context in which it has the teacher's weights
) -> TeacherCache:
    """Runs the source over the texts that are not in the run folder yet.

    Raises DataError when a tokenizer does not read the bytes of a text, and what a forward pass raises.
    """
    every = options.positions == "every"
    space = EventSpace.between(theirs.vocabulary, ours.vocabulary)
    read = [(a.ids, b.ids) for a, b in zip(theirs.examples, ours.examples, strict=True)]
    compared = [options.events, every, *([] if options.blanks else ["no blanks"])]
    named = key("events-1", *content, read, theirs.vocabulary.rows, ours.vocabulary.rows, *compared)
    chunks = [range(i, min(i + CHUNK_SAMPLES, len(samples))) for i in range(0, len(samples), CHUNK_SAMPLES)]
    pieces = tuple(run.piece("events", f"{named}-c{i:04d}") for i in range(len(chunks)))
    model: Any = None
    label = f"Reading what {source.facts.label} says next"
    with Progress(emit, stage, label, len(samples), "texts") as progress, ExitStack() as loaded:
        for chunk, piece in zip(chunks, pieces, strict=True):
            if piece.exists():
                progress.skip(len(chunk))
                continue
            pairings = {i: _pairing(samples[i], i, theirs, ours, mode, every, options.blanks) for i in chunk}
            if model is None:
                model = source.load()
                loaded.enter_context(inside(model))  # once, for all texts
            told = _told(source, model, theirs.examples, pairings, space, options.events, batch_size, emit, progress)
            run.save(piece, to_tensors([told[i] for i in chunk]))
    model = None
    release()
    return TeacherCache(named, pieces, space, run)


@torch.no_grad()
def _told(
    source: LoadedModel,
    model: Any,
    examples: Sequence[Example],
    pairings: Mapping[int, Pairing],
    space: EventSpace,
    events: int,
    batch_size: int,
    emit: Emit,
    progress: Progress,
) -> dict[int, Events]:
    """What the source says of the texts of one chunk."""
    longest = max(len(examples[i].ids) for i in pairings)
    fits = max(1, LOGITS // (4 * longest * source.facts.vocab))

    def forward(batch: Sequence[int]) -> list[Events]:
        ids, mask = padded([examples[i].ids for i in batch], source.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return teach(logits, [pairings[i] for i in batch], space, events)

    batches = Batches(source.facts.name, min(batch_size, fits), source.device, partial(_warn, emit))
    found: dict[int, Events] = {}
    for batch, told in batches.run({i: len(examples[i].ids) for i in pairings}, forward):
        found.update(zip(batch, told, strict=True))
        progress.advance(len(batch))
    return found


def _pairing(
    sample: Sample, number: int, theirs: Reading, ours: Reading, mode: str, every: bool, blanks: bool = True
) -> Pairing:
    texts, ends = [], []
    for side in (theirs, ours):
        text = render(sample, side.tokenizer, mode).encode()
        texts.append(text)
        ends.append(token_ends(side.vocabulary, side.examples[number].ids, text, cut=True))
    spans = None
    if any(uses_template(sample, side.tokenizer, mode) for side in (theirs, ours)):
        spans = _spans(sample, theirs.tokenizer, ours.tokenizer, mode)
    found = pair(ends[0], ends[1], texts[1], every, spans)
    return found if blanks else without_blanks(found, ours.vocabulary, ours.examples[number].ids)


def _spans(sample: Sample, theirs: Any, ours: Any, mode: str) -> list[Span]:
    """What both read of a conversation: the messages' contents, each where its template puts it, in bytes."""
    placed = []
    for tokenizer in (theirs, ours):
        text = render(sample, tokenizer, mode)
        bounds: dict[int, tuple[int, int]] = {}  # message -> from its first word to its last
        for (part, *_), start, end in place(sample, text, tokenizer, mode):
            bounds[part] = (bounds.get(part, (start, end))[0], end)
        placed.append({part: (len(text[:a].encode()), len(text[:b].encode())) for part, (a, b) in bounds.items()})
    return [
        (placed[0][part][0], start, stop - start)
        for part, (start, stop) in placed[1].items()
        if part in placed[0] and placed[0][part][1] - placed[0][part][0] == stop - start
    ]


def _warn(emit: Emit, message: str) -> None:
    emit(Warned(STAGE, message))


class EventTerm:
    """The loss against what the source said, from the cache."""

    replaces = True

    def __init__(self, events: Sequence[Events], space: EventSpace, weight: float, device: torch.device) -> None:
        self.events, self.space, self.weight = events, space.to(device), weight

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()

    def loss(self, batch: Mapping[str, Any], logits: Tensor) -> tuple[Tensor, int]:
        counted = F.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
        said = collate_events(self.events, batch["parts"], counted).to(logits.device)
        if not len(said.rows):
            return 0 * logits.sum(), 0
        return event_loss(logits, said, self.space), len(said.rows)
