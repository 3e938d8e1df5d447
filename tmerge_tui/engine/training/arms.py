"""Adaptation (eqs. 15-18) and what it is compared with: the stage "adapt".

Every method trains the same target on the same tokens, steps, seeds and optimiser:

    adapted           the fused model: target + frozen residual, next-token loss (the paper's method)
    sft               the untouched target, next-token loss
    distilled         the untouched target, with the source as teacher (`distill`)
    hinted            as adapted, with transport hints in the loss (`hints`)
    hinted_permuted   its placebo: the same hints with source channels in random order
    distilled_hinted  as distilled, with hints

What a training leaves is one piece of the run folder: the trained tensors in fp32 under their names in the target's
file, residual included, so that folding is one cast. Interrupted trainings resume from their last checkpoint.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.distillation import Teacher
from tmerge_tui.engine.training.examples import Block, Lesson, pack_blocks, pad_blocks, read_lessons
from tmerge_tui.engine.training.hints import HintLoss, HintRows
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.residual import attach
from tmerge_tui.engine.training.trainer import Step, Terms, steps_of, train
from tmerge_tui.engine.weights.update import Update
from tmerge_tui.errors import DataError, ModelError
from tmerge_tui.events import Emit, TrainingStep, Warned
from tmerge_tui.extras import imported
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.file_names import file_names
from tmerge_tui.models.forward import LoadedModel, release, trunk
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.run_folder import RunDir, key

STAGE = "adapt"
NOT_IN_LOSS = set(Adaptation.model_fields) - set(Adaptation.affecting("training"))


@dataclass(frozen=True)
class Method:
    name: str
    residual: bool = False
    distilled: bool = False
    hints: Literal["", "source", "permuted"] = ""


def methods(options: Adaptation) -> tuple[Method, ...]:
    """What a recipe trains; the result is `result_method`."""
    found = [Method("adapted", residual=True)]
    if options.hints is not None:
        found.append(Method("hinted", residual=True, hints="source"))
        if options.hints.permuted_control:
            found.append(Method("hinted_permuted", residual=True, hints="permuted"))
    if "sft" in options.compare:
        found.append(Method("sft"))
    if "distill" in options.compare:
        found.append(Method("distilled", distilled=True))
        if options.hints is not None and options.hints.with_distill:
            found.append(Method("distilled_hinted", distilled=True, hints="source"))
    return tuple(found)


def result_method(options: Adaptation) -> str:
    """The one whose first seed becomes model/."""
    return "adapted" if options.hints is None else "hinted"


@dataclass(frozen=True)
class Lessons:
    """The training text as the target reads it, cut into blocks."""

    samples: tuple[Sample, ...]
    lessons: tuple[Lesson, ...]
    blocks: tuple[Block, ...]
    validation: tuple[Block, ...]
    key: str

    @property
    def tokens(self) -> int:
        """Of one pass."""
        return sum(len(block.ids) for block in self.blocks)


def prepare_lessons(samples: Sequence[Sample], tokenizer: Any, options: Adaptation, mode: str, placed: bool) -> Lessons:
    """`placed`: hints or distillation need words. With `patience`, the last share of the samples is for validation.

    Raises DataError when nothing is left to train on.
    """
    length = options.block_length if options.packing == "pad" else 0
    lessons = tuple(read_lessons(samples, tokenizer, length, mode, options.answer_only, placed))
    held = max(1, round(options.validation * len(samples))) if options.patience else 0
    order = range(len(samples))
    cut = pack_blocks if options.packing == "pack" else pad_blocks
    blocks = cut(lessons, options.block_length, order[: len(samples) - held])
    validation = cut(lessons, options.block_length, order[len(samples) - held :]) if held else []
    if not blocks or (held and not validation):
        raise DataError(
            f"{len(samples)} training samples give {len(blocks)} blocks to train on and {len(validation)} to validate",
            "text with at least two tokens in both",
            "give more text, or unset adaptation.patience",
        )
    read = key([(b.ids, b.labels) for b in blocks], [(b.ids, b.labels) for b in validation])
    return Lessons(tuple(samples), lessons, tuple(blocks), tuple(validation), read)


@dataclass(frozen=True)
class School:
    """All that the trainings of a run share."""

    target: ModelFacts
    checkpoint: Checkpoint
    load: Callable[[], Any]  # the target in float32, in main memory
    options: Adaptation
    lessons: Lessons
    merged: Update  # what an arm with a residual starts from
    alpha: float  # of `merged`, as the report names it
    norm: str
    device: torch.device
    source: LoadedModel | None  # the teacher; None when nothing is distilled
    same_tokenizer: bool
    target_tokenizer: Any
    mode: str  # of chat templates
    hints: dict[str, HintRows]
    run: RunDir
    emit: Emit


def adapt(school: School) -> list[TrainedPiece]:
    """Every method with every seed; finished ones are read (stage "adapt"). Raises NumericsError, ModelError."""
    options = school.options
    chosen = methods(options)
    steps = steps_of(options, len(school.lessons.blocks))
    trained = []
    with Progress(school.emit, STAGE, "Training", steps * len(chosen) * len(options.seeds), "steps") as progress:
        for method in chosen:
            for seed in options.seeds:
                piece = _piece(school, method, seed)
                if not piece.exists():
                    done = progress.done
                    _train(
                        school, method, seed, piece, partial(_report, school.emit, progress, done, method.name, seed)
                    )
                    progress.advance(steps - (progress.done - done))
                else:
                    progress.skip(steps)
                content = piece.stem.split("-")[-1]
                trained.append(TrainedPiece(method.name, seed, piece, content, school.checkpoint, school.norm))
    return trained


def _report(emit: Emit, progress: Progress, before: int, method: str, seed: int, step: Step) -> None:
    emit(TrainingStep(method, seed, **asdict(step)))
    progress.advance(max(0, step.step - (progress.done - before)), f"{method}, seed {seed}: loss {step.loss:.3f}")


def _piece(school: School, method: Method, seed: int) -> Path:
    options = school.options
    parts: list[Any] = [
        "adapt-1", school.target.fingerprint, school.lessons.key, seed, options.model_dump(exclude=set(NOT_IN_LOSS)),
        list(school.merged.key[1:]) if method.residual else None,
    ]  # fmt: skip
    if method.distilled:
        assert school.source is not None
        source = school.source
        parts.append([source.facts.fingerprint, str(source.dtype), options.distill_weight, school.same_tokenizer])
    if method.hints:
        assert options.hints is not None
        parts.append([school.hints[method.hints].key, options.hints.weight])
    return school.run.piece(f"trained-{method.name}", key(*parts))


def _train(school: School, method: Method, seed: int, piece: Path, report: Callable[[Step], None]) -> None:
    options = school.options
    torch.manual_seed(seed)  # of the low-rank updates; the Trainer seeds itself
    model = school.load()
    try:
        names = _trainable(model, school)
        if method.residual:
            attach(model, school.merged)
        learner = _with_lora(model, options, names) if options.method == "lora" else model
        terms = _terms(school, method, model)
        folder = school.run.state / f"training-{piece.stem}"
        figures = train(
            learner,
            school.lessons.blocks,
            school.lessons.validation,
            options,
            seed,
            terms,
            folder,
            school.device,
            report,
        )
        if _first_process():
            school.run.save(piece, _tensors(model, names), asdict(figures))
            shutil.rmtree(folder, ignore_errors=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # the others go on to read the piece
    finally:
        del model
        release()


def _first_process() -> bool:
    return (
        not torch.distributed.is_available()
        or not torch.distributed.is_initialized()
        or (torch.distributed.get_rank() == 0)
    )


def _terms(school: School, method: Method, model: nn.Module) -> Terms:
    options = school.options
    teacher, hints = None, None
    if method.distilled:
        assert school.source is not None
        source = school.source
        teacher = Teacher.of(
            source.load(), source.tokenizer, school.target_tokenizer, school.lessons.samples, school.lessons.lessons,
            2 * options.block_length, school.mode, school.same_tokenizer,
        )  # fmt: skip
    if method.hints:
        hints = HintLoss(model, school.target.layout, school.lessons.lessons, school.hints[method.hints])
    weight = 0.0 if options.hints is None else options.hints.weight
    return Terms(teacher, options.distill_weight, hints, weight)


def _trainable(model: Any, school: School) -> dict[str, list[str]]:
    """Runtime parameter -> its names in the target's file.

    Every parameter for method full, projections' weights for lora. Those that are put together from several tensors of
    the file (packed experts) stay frozen, and so do those that text does not reach (a vision tower).
    """
    in_file, _ = file_names(model, school.checkpoint.names)
    reached = {id(p) for module in (trunk(model), model.get_output_embeddings()) for p in module.parameters()}
    names: dict[str, list[str]] = {}
    same: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in reached:
            continue
        first = same.setdefault(id(parameter), name)  # tied tensors train once and are written under all their names
        if name in in_file:
            names.setdefault(first, []).append(in_file[name])
    left = [name for name in same.values() if name not in names]
    if left:
        text = f"{len(left)} parameters are no tensor of the target's file by themselves and stay as they are"
        school.emit(Warned(STAGE, f"{text}, first {left[0]}"))
    if school.options.method == "lora":
        weights = {f"{p.module}.weight" for p in school.target.layout.projections}
        names = {name: stored for name, stored in names.items() if name in weights}
    if not names:
        raise ModelError(f"{school.target.name} has no parameter that can be trained", "a model with weights")
    full = school.options.method == "full"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(full and name in names)
    return names


def _with_lora(model: Any, options: Adaptation, names: dict[str, list[str]]) -> Any:
    with imported("adaptation.method: lora", "lora"):
        from peft import LoraConfig, get_peft_model
    modules = [name.removesuffix(".weight") for name in names]
    config = LoraConfig(
        r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=modules, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():  # peft asks for names that transformers is about to drop
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


@torch.no_grad()
def _tensors(model: nn.Module, names: dict[str, list[str]]) -> dict[str, Tensor]:
    """What was trained, under the file's names: W_base + residual + low-rank update, fp32."""
    tensors = {}
    for name, stored in names.items():
        path, _, attribute = name.rpartition(".")
        module: Any = model.get_submodule(path)
        value = getattr(module, attribute)  # the sum, where a residual is attached
        if hasattr(module, "get_delta_weight") and attribute == "weight":
            value = value + module.get_delta_weight("default")
        for one in stored:
            tensors[one] = value.detach().float().clone()
    return tensors
