"""The part of the pipeline that `adaptation` asks for: hints -> tune -> teacher -> search -> adapt -> fold_trained, and
later measure_trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tmerge_tui.engine.data.corpus import Corpus, Sample, read_samples
from tmerge_tui.engine.evaluation.bits_per_byte import score
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.methods.method import Candidate
from tmerge_tui.engine.prepared import Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.arms import (
    Setup,
    Watch,
    adapt,
    arms,
    nothing_to_teach,
    prepare_examples,
    result_arm,
)
from tmerge_tui.engine.training.distillation import same_tokenizer
from tmerge_tui.engine.training.hints import carry_hints
from tmerge_tui.engine.training.measure import measure_trained, variant_of
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.search import search
from tmerge_tui.engine.training.synthetic import train_on_written
from tmerge_tui.engine.training.teacher import STAGE
from tmerge_tui.engine.training.teaching import what_is_said
from tmerge_tui.engine.training.tune import cut_blocks, on_validation, tune
from tmerge_tui.engine.weights.export import Folded, export
from tmerge_tui.errors import ModelError
from tmerge_tui.events import Emit, StageFinished, Warned
from tmerge_tui.models.checkpoint import copy_bytes
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.loading import load_model
from tmerge_tui.quantities import size
from tmerge_tui.recipe.adaptation import CONTROLS, Adaptation
from tmerge_tui.run_folder import RunDir, key

KNOWING_NOTHING = {"control.other_text", "control.permuted", "control.unigram"}  # placebos made of the source's events
OWN_STAGE = "teacher_self"
UNTUNED_STAGE = "teacher_untuned"


@dataclass(frozen=True)
class Adapted:
    """What the trainings of a run have left."""

    setup: Setup
    trained: list[TrainedPiece]
    written: dict[str, Any] | None = None  # `synthetic` of report.json

    @classmethod
    def of(cls, setup: Setup) -> Adapted:
        """Trains what is not there yet (stage "adapt")."""
        return cls(setup, adapt(setup))

    def go_on(self, prepared: Prepared, run: RunDir, emit: Emit) -> Adapted:
        """With the trainings on text that the source writes, where the recipe asks for them."""
        if self.setup.options.synthetic is None:
            return self
        more, told = train_on_written(prepared, self.setup, self.trained, run, emit)
        return replace(self, trained=[*self.trained, *more], written=told)

    @property
    def result(self) -> TrainedPiece:
        """The training that becomes model/."""
        taught = not nothing_to_teach(self.setup, self.trained)
        name = result_arm(self.setup.options, taught)
        return next(piece for piece in self.trained if piece.arm == name)

    @property
    def variant(self) -> Variant:
        """The same in the loaded target."""
        return variant_of(self.result)

    @property
    def candidates(self) -> list[Variant]:
        """One of every arm, that of the first seed; placebos are none."""
        first = self.setup.options.seeds[0]
        return [
            variant_of(piece) for piece in self.trained if piece.seed == first and piece.arm not in placebo_arms(self)
        ]

    @property
    def first_seed(self) -> list[Variant]:
        """One of every arm, placebos too."""
        first = self.setup.options.seeds[0]
        return [variant_of(piece) for piece in self.trained if piece.seed == first]

    def fold(self, out: Path, run: RunDir, emit: Emit) -> Folded:
        """Writes the result to `out` (stage "fold_trained")."""
        total = copy_bytes(self.setup.checkpoint, self.result.names)
        with Progress(emit, "fold_trained", "Writing the adapted model", total, "bytes") as progress:
            return export(self.result, self.setup.alpha, out, run, emit, progress)

    def measure(self, target: Evaluator, fused: Candidate, corpus: Corpus, emit: Emit) -> dict[str, Any]:
        """`adaptation` of report.json."""
        measured = measure_trained(self.setup, target, self.trained, fused, corpus.holdout, emit)
        return measured | {"synthetic": self.written}


def placebo_arms(adapted: Adapted) -> set[str]:
    """Names of the arms that are never a result."""
    return {piece.arm for piece in adapted.trained if piece.arm.startswith(CONTROLS) or piece.arm == "hinted_permuted"}


def make_setup(
    prepared: Prepared,
    fused: Candidate,
    run: RunDir,
    emit: Emit,
) -> Setup:
    """All that is needed to train, after the stages that what is asked for has: "hints", "tune", "teacher" and those of
    placebos, "search". Raises what they raise."""
    recipe, options = prepared.recipe, prepared.recipe.adaptation
    assert options is not None

    def source() -> LoadedModel:
        return prepared.model(prepared.source, emit)

    samples = training_samples(options, prepared.corpus, recipe.seed, emit)
    chosen = arms(options)
    mode = recipe.calibration.chat_template
    ours, theirs = prepared.target.tokenizer, prepared.source.tokenizer
    same = options.distilled and same_tokenizer(ours, theirs, samples, mode)
    examples = prepare_examples(samples, ours, options, mode, options.hints is not None)
    hints = {}
    if options.hints is not None:
        if fused.merge.alignment is None:
            raise ModelError(
                f"method: {recipe.method} has no transport plans to carry hints through",
                "method: transport_merge",
                "leave adaptation.hints out",
            )
        variants = [term.removeprefix("hints.") for arm in chosen for term in arm.terms if term.startswith("hints.")]
        length = 4 * max(len(example.ids) for example in examples.examples)
        hints = carry_hints(
            source(), fused.merge.alignment, samples, examples.examples, recipe.calibration, length, options.hints,
            recipe.seed, list(dict.fromkeys(variants)), run, emit,
        )  # fmt: skip
    tuned = tune(prepared, samples, run, emit) if options.tuned else None
    teacher = own = untuned = None
    said = {term for arm in chosen for term in arm.terms}
    if options.distilled and (not same or said & KNOWING_NOTHING):
        teacher = what_is_said(prepared, prepared.source, examples, run, emit, STAGE, tuned)
    elif options.distilled:
        emit(StageFinished(STAGE, 0.0, "skipped"))  # within one tokenizer the source reads along
    if "control.untuned" in said and same:
        emit(StageFinished(UNTUNED_STAGE, 0.0, "skipped"))
    elif "control.untuned" in said:
        untuned = what_is_said(prepared, prepared.source, examples, run, emit, UNTUNED_STAGE)
    if "control.self" in said:
        own = what_is_said(prepared, prepared.target, examples, run, emit, OWN_STAGE)
    if prepared.device.type == "cuda" and (prepared.device.index or 0) > 0:
        text = "training takes the first visible GPU"
        emit(Warned("adapt", f"{text}, not {prepared.device}: set CUDA_VISIBLE_DEVICES to choose another"))

    # float32 whatever the passes' type: a learning rate of 1e-6 is lost in bfloat16 weights
    whole = prepared.target.facts.weight_bytes(torch.float32)
    if recipe.memory_bytes is not None and recipe.memory_bytes < whole:
        text = f"memory: {size(recipe.memory_bytes)} does not hold for training, which streams no weights"
        emit(Warned("adapt", f"{text}: it takes {size(whole)} of main memory for the target's alone"))

    def load() -> Any:
        return load_model(prepared.target.facts, torch.device("cpu"), torch.float32, whole, emit)

    def told(piece: TrainedPiece) -> float:
        return on_validation(prepared, prepared.target, [variant_of(piece)], run, emit)[0]

    setup = Setup(
        target=prepared.target.facts,
        checkpoint=prepared.target.checkpoint,
        load=load,
        options=options,
        examples=examples,
        merged=fused.update if options.alpha is None else fused.rescaled(options.alpha),
        alpha=fused.alpha if options.alpha is None else options.alpha,
        norm=recipe.fusion.norm,
        device=prepared.device,
        source=source() if same else None,
        teacher=teacher,
        own=own,
        untuned=untuned,
        tuned=tuned,
        told=told,
        watch=_watch(prepared, emit),
        margin=recipe.evaluation.margin,
        searched=None,
        hints=hints,
        run=run,
        emit=emit,
    )
    if not options.searched:
        return setup
    held = prepared.corpus.validation
    found = search(setup, cut_blocks(held, ours, options, mode), len(held))
    choice = {"learning_rate": found.learning_rate, "distill_weight": found.distill_weight}
    return replace(setup, options=options.model_copy(update=choice), searched=found.plain())


def _watch(prepared: Prepared, emit: Emit) -> Watch:
    """The validation text as the report measures it, told by whatever the target has become."""
    recipe, held, tokenizer = prepared.recipe, prepared.corpus.validation, prepared.target.tokenizer
    batch, length = recipe.evaluation.batch_size, recipe.calibration.max_length

    def told(model: Any) -> float:
        return score(model, tokenizer, held, batch, length, lambda text: emit(Warned("adapt", text))).bits_per_byte

    return Watch(key([sample.plain for sample in held], length), told)


def training_samples(options: Adaptation, corpus: Corpus, seed: int, emit: Emit) -> tuple[Sample, ...]:
    """The calibration samples, or those of `adaptation.path` that are in no other part of the run's text."""
    if options.path is None:
        return corpus.calibration[: options.samples]
    kept_out = (*corpus.holdout, *corpus.validation)
    samples, warnings = read_samples(Path(options.path), options.column, options.samples, seed, kept_out)
    for warning in warnings:
        emit(Warned("adapt", warning))
    return samples
