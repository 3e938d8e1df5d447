"""Adaptation (eqs. 15-18) and what it is compared with: the stage "adapt".

Every arm trains the same target on the same tokens, steps, seeds and optimiser; what differs is data:

    adapted            the merged model: target + frozen residual, next-token loss (the paper's method)
    adapted_distilled  the same, with what the source says next (`teacher`) in the loss
    sft                the untouched target, next-token loss
    distilled          the untouched target, with the source as teacher
    control_*          its placebos: teachers that know as much of the language, but not of the text; the source before
                       it was tuned
    hinted             as adapted, with transport hints in the loss (`hints`)
    hinted_permuted    its placebo: the same hints with source channels in random order
    distilled_hinted   as distilled, with hints

What a training leaves is one piece of the run folder, an update of the target. Interrupted trainings resume from their
last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.distillation import TokenTerm
from tmerge_tui.engine.training.event_cache import Events
from tmerge_tui.engine.training.examples import Block, Example, pack_blocks, pad_blocks, read_examples
from tmerge_tui.engine.training.fit import STAGE, fit
from tmerge_tui.engine.training.hints import HintLoss, HintRows
from tmerge_tui.engine.training.loss import Term
from tmerge_tui.engine.training.patience import PASSES, Patience
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.placebos import of_other_texts, permuted, unigram
from tmerge_tui.engine.training.teacher import EventTerm, TeacherCache
from tmerge_tui.engine.training.trainer import Step, steps_of
from tmerge_tui.engine.training.tune import Tuned
from tmerge_tui.engine.weights.install import installed, places
from tmerge_tui.engine.weights.update import Update
from tmerge_tui.errors import DataError
from tmerge_tui.events import Emit, TrainingStep, Validated, Warned
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.recipe.adaptation import CONTROLS, Adaptation
from tmerge_tui.run_folder import RunDir, key

NOT_IN_LOSS = set(Adaptation.model_fields) - set(Adaptation.affecting("training"))
READING_ALONG = ("source", "control.untuned")  # terms for which a source with the target's tokenizer needs no cache


@dataclass(frozen=True)
class Arm:
    name: str
    start: Literal["target", "merged"] = "target"
    terms: tuple[str, ...] = ()  # beside the next token: "source", "control.NAME", "hints.source", "hints.permuted"

    @property
    def taught(self) -> bool:
        """Whether it has a teacher, or the placebo of one."""
        return any(term == "source" or term.startswith("control.") for term in self.terms)


def arms(options: Adaptation) -> tuple[Arm, ...]:
    """What a recipe trains; the result is `result_arm`."""
    found = []
    if options.start == "merged":
        found.append(Arm("adapted", "merged"))
        if options.teacher is not None:
            found.append(Arm("adapted_distilled", "merged", ("source",)))
        if options.hints is not None:
            found.append(Arm("hinted", "merged", ("hints.source",)))
            if options.hints.permuted_control:
                found.append(Arm("hinted_permuted", "merged", ("hints.permuted",)))
    from_target = options.start == "target"
    if "sft" in options.compare or options.tuned or (from_target and options.teacher is None):
        found.append(Arm("sft"))
    if "distill" in options.compare or (from_target and options.teacher is not None):
        found.append(Arm("distilled", terms=("source",)))
        found += [Arm(CONTROLS + name, terms=(f"control.{name}",)) for name in options.controls]
        if options.hints is not None and options.hints.with_distill:
            found.append(Arm("distilled_hinted", terms=("source", "hints.source")))
    return tuple(found)


def result_arm(options: Adaptation, taught: bool = True) -> str:
    """The one whose first seed becomes model/; with `taught` false, when nothing was distilled after all."""
    distilled = options.teacher is not None and taught
    if options.start == "target":
        return "distilled" if distilled else "sft"
    if distilled:
        return "adapted_distilled"
    return "adapted" if options.hints is None else "hinted"


@dataclass(frozen=True)
class Examples:
    """The training text as the target reads it, cut into blocks."""

    samples: tuple[Sample, ...]
    examples: tuple[Example, ...]
    blocks: tuple[Block, ...]
    validation: tuple[Block, ...]
    key: str

    @property
    def tokens(self) -> int:
        """Of one pass."""
        return sum(len(block.ids) for block in self.blocks)


def prepare_examples(
    samples: Sequence[Sample], tokenizer: Any, options: Adaptation, mode: str, placed: bool
) -> Examples:
    """`placed`: hints need words. With `patience` and a fixed number of passes, the last share of the
    samples is for validation.

    Raises DataError when nothing is left to train on.
    """
    length = options.block_length if options.packing == "pad" else 0
    examples = tuple(read_examples(samples, tokenizer, length, mode, options.answer_only, placed))
    held = max(1, round(options.validation * len(samples))) if options.patience and not options.patient else 0
    order = range(len(samples))
    cut = pack_blocks if options.packing == "pack" else pad_blocks
    blocks = cut(examples, options.block_length, order[: len(samples) - held])
    validation = cut(examples, options.block_length, order[len(samples) - held :]) if held else []
    if not blocks or (held and not validation):
        raise DataError(
            f"{len(samples)} training samples give {len(blocks)} blocks to train on and {len(validation)} to validate",
            "text with at least two tokens in both",
            "give more text, or unset adaptation.patience",
        )
    read = key([(b.ids, b.labels) for b in blocks], [(b.ids, b.labels) for b in validation])
    return Examples(tuple(samples), examples, tuple(blocks), tuple(validation), read)


@dataclass(frozen=True)
class Watch:
    """The text that trainings with `epochs: auto` are judged by."""

    key: str
    told: Callable[[Any], float]  # model -> bits per byte


@dataclass(frozen=True)
class Setup:
    """All that the trainings of a run share."""

    target: ModelFacts
    checkpoint: Checkpoint
    load: Callable[[], Any]  # the target in float32, in main memory
    options: Adaptation
    examples: Examples
    merged: Update  # what an arm that starts from the merged model starts from
    alpha: float  # of `merged`, as the report names it
    norm: str
    device: torch.device
    source: LoadedModel | None  # the teacher within one tokenizer; None: there is none, or a cache stands for it
    teacher: TeacherCache | None  # what the source said
    own: TeacherCache | None  # what the untouched target said, for a placebo
    untuned: TeacherCache | None  # what the source said before it was tuned
    tuned: Tuned | None  # the source as a teacher, where it was tuned
    told: Callable[[TrainedPiece], float]  # bits per byte of the validation text, by the target with a training
    watch: Watch
    margin: float  # of those, the smallest difference of interest
    searched: Mapping[str, Any] | None  # how learning rate and weight were chosen, as report.json has it
    hints: Mapping[str, HintRows]
    run: RunDir
    emit: Emit
    before: TrainedPiece | None = None  # the training that these go on from

    @property
    def weight(self) -> float:
        """Of a teacher's part in the loss."""
        weight = self.options.distill_weight
        assert isinstance(weight, float), "it has not been chosen yet"
        return weight

    def events(self, control: str, seed: int) -> tuple[TeacherCache, list[Events]]:
        """(the cache they are from, what a teacher that does not know the text says); "" is the source itself."""
        cache = self.cache(control)
        assert cache is not None
        told = cache.events
        if control == "other_text":
            told = of_other_texts(told, seed)
        elif control == "permuted":
            told = permuted(told, seed)
        elif control == "unigram":
            told = unigram(told, cache.space)
        return cache, told

    def cache(self, control: str) -> TeacherCache | None:
        """What the teacher of this placebo said; "" is the source itself."""
        return {"self": self.own, "untuned": self.untuned}.get(control, self.teacher)

    def teaching(self, arm: Arm) -> AbstractContextManager[None]:
        """Around a training: the tuned source's weights in the source, where it reads along as their teacher."""
        if self.tuned is None or not self.tuned.helped or self.source is None or "source" not in arm.terms:
            return nullcontext()
        return installed(self.source.load(), self.tuned.piece)


def adapt(setup: Setup) -> list[TrainedPiece]:
    """Every arm with every seed; finished ones are read (stage "adapt"). Raises NumericsError, ModelError.

    Arms with a teacher are left out when the tuned source tells the validation text no better than SFT does.
    """
    options = setup.options
    chosen = arms(options)
    if setup.tuned is not None:
        chosen = tuple(sorted(chosen, key=lambda arm: arm.taught))  # what is judged first
    steps = steps_of(options, len(setup.examples.blocks))
    trained: list[TrainedPiece] = []
    with Progress(setup.emit, STAGE, "Training", steps * len(chosen) * len(options.seeds), "steps") as progress:
        for arm in chosen:
            if arm.taught and (reason := nothing_to_teach(setup, trained)):
                setup.emit(Warned(STAGE, f"{arm.name} is not trained: {reason}"))
                progress.total -= steps * len(options.seeds)
                continue
            for seed in options.seeds:
                trained.append(trained_piece(setup, arm, seed, steps, progress))
    return trained


def trained_piece(setup: Setup, arm: Arm, seed: int, steps: int, progress: Progress) -> TrainedPiece:
    """One arm with one seed, trained or read; `steps` is what the progress has counted on. Raises as `adapt`."""
    piece = piece_of(setup, arm, seed)
    left = TrainedPiece(arm.name, seed, piece, piece.stem.split("-")[-1], setup.checkpoint, setup.norm)
    done, end = progress.done, progress.skip
    if not piece.exists():
        end = progress.advance
        train_arm(setup, arm, seed, piece, partial(_report, setup.emit, progress, done, arm.name, seed))
    made = progress.done - done
    whole = max(made, left.figures.steps) if setup.options.patient else steps
    progress.total -= steps - whole
    end(whole - made)
    return left


def nothing_to_teach(setup: Setup, trained: Sequence[TrainedPiece]) -> str:
    """Why the tuned source is no teacher, on validation text; empty when it is one."""
    if setup.tuned is None:
        return ""
    sft = sft_told(setup, trained)
    tuned = setup.tuned
    if sft - tuned.told > setup.margin:
        return ""
    return (
        f"the {'tuned' if tuned.helped else 'untuned'} source tells the validation text in {tuned.told:.4f} bits per "
        f"byte, the fine-tuned target in {sft:.4f}: there is nothing to teach"
    )


def sft_told(setup: Setup, trained: Sequence[TrainedPiece]) -> float:
    """Bits per byte of the validation text after plain fine-tuning, its first seed."""
    return setup.told(next(piece for piece in trained if piece.arm == "sft"))


def _report(emit: Emit, progress: Progress, before: int, arm: str, seed: int, step: Step) -> None:
    emit(TrainingStep(arm, seed, **asdict(step)))
    progress.advance(max(0, step.step - (progress.done - before)), f"{arm}, seed {seed}: loss {step.loss:.3f}")


def _report_told(emit: Emit, arm: str, seed: int, step: int, bits_per_byte: float, note: str) -> None:
    emit(Validated(arm, seed, step, bits_per_byte, note))


def piece_of(setup: Setup, arm: Arm, seed: int) -> Path:
    """Where a training is kept, named after all that it depends on."""
    options = setup.options
    parts: list[Any] = [
        "adapt-1", setup.target.fingerprint, setup.examples.key, seed, options.model_dump(exclude=NOT_IN_LOSS),
        list(setup.merged.key[1:]) if arm.start == "merged" else None,
    ]  # fmt: skip
    if setup.before is not None:
        parts.append(["after", setup.before.content])
    if options.patient:
        parts.append([options.that_affect("patience"), options.patience or PASSES, setup.watch.key])
    for term in arm.terms:
        kind, _, which = term.partition(".")
        if kind == "hints":
            assert options.hints is not None
            parts.append([setup.hints[which].key, options.hints.weight])
        elif term in READING_ALONG and setup.source is not None:
            source, tuned = setup.source, setup.tuned if term == "source" else None
            along = [source.facts.fingerprint, str(source.dtype), options.distill_weight, True]
            parts.append(along if tuned is None or not tuned.helped else [*along, tuned.piece.content])
        else:
            cache = setup.cache(which)
            assert cache is not None
            parts.append([cache.key, options.distill_weight, which])
    return setup.run.piece(f"trained-{arm.name}", key(*parts))


def train_arm(setup: Setup, arm: Arm, seed: int, piece: Path, report: Callable[[Step], None]) -> None:
    """Trains it and writes the piece. Raises NumericsError, ModelError."""
    examples, options, patience = setup.examples, setup.options, None
    if options.patient:
        report_told = partial(_report_told, setup.emit, arm.name, seed)
        patience = Patience(setup.watch.told, options.patience or PASSES, options.min_gain, report_told)
    with setup.teaching(arm):
        fit(
            partial(_loaded, setup), setup.target, setup.checkpoint, setup.merged if arm.start == "merged" else None,
            examples.blocks, examples.validation, setup.options, seed, partial(_terms, setup, arm, seed), piece,
            setup.device, setup.run, setup.emit, report, patience=patience,
        )  # fmt: skip


def _loaded(setup: Setup) -> Any:
    """The target, as the training before has left it."""
    model = setup.load()
    if setup.before is not None:
        with torch.no_grad():
            for name, (module, attribute) in places(model, setup.before.names).items():
                tensor = getattr(module, attribute)
                tensor.copy_(setup.before.change(name, tensor).values)
    return model


def _terms(setup: Setup, arm: Arm, seed: int, model: Any) -> list[Term]:
    return [_term(setup, name, seed, model) for name in arm.terms]


def _term(setup: Setup, name: str, seed: int, model: Any) -> Term:
    """The table of terms: a new loss is a file and a line here."""
    kind, _, which = name.partition(".")
    if kind == "hints":
        assert setup.options.hints is not None
        examples, weight = setup.examples.examples, setup.options.hints.weight
        return HintLoss(model, setup.target.layout, examples, setup.hints[which], weight)
    if name in READING_ALONG and setup.source is not None:
        return TokenTerm(setup.source.load(), setup.weight)
    cache, told = setup.events(which, seed)
    return EventTerm(told, cache.space, setup.weight, setup.device)
