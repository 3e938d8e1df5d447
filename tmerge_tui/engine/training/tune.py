"""The source learns the user's text before it teaches (stage "tune").

What a source that does not know the text says about it is worse than what the target learns from it alone. Tuned is
every weight but embeddings and head (`full`, in float32) or low-rank updates of the projections (`lora`, on weights in
the type of the source's passes, with gradient checkpointing). It stops early on validation text, and the best moment is
kept: a piece that is an update of the source's checkpoint, installed while the source teaches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tmerge_tui import machine
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.examples import Block, pack_blocks, pad_blocks, read_examples
from tmerge_tui.engine.training.fit import fit, require_one_process
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.trainer import Step, steps_of
from tmerge_tui.errors import DataError
from tmerge_tui.events import Emit, Logged, Warned
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.loading import load_model
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.run_folder import RunDir, key

STAGE = "tune"
PARAMETER = 16  # bytes that training takes for each: weight, gradient and two moments in float32
PATIENCE = 2  # measurements of the validation text without progress


@dataclass(frozen=True)
class Tuned:
    """The source after tuning, and what it was worth: bits per byte of the validation text."""

    piece: TrainedPiece
    method: str
    texts: int
    before: float
    after: float

    @property
    def helped(self) -> bool:
        """Whether the tuned source teaches, and not the source as it was."""
        return self.after < self.before

    @property
    def told(self) -> float:
        """What the source that teaches is worth."""
        return self.after if self.helped else self.before

    def plain(self) -> dict[str, Any]:
        """As report.json has it."""
        figures = self.piece.figures
        return {
            "method": self.method,
            "texts": self.texts,
            "before": self.before,
            "after": self.after,
            "helped": self.helped,
            "steps": figures.steps,
            "seconds": figures.seconds,
            "validation": [list(point) for point in figures.measured],
        }


def tune(prepared: Prepared, samples: Sequence[Sample], run: RunDir, emit: Emit) -> Tuned:
    """Trains the source on `samples`, or reads the piece of an earlier run.

    Raises DataError, NumericsError, ModelError, UsageError under a launcher, ExtraMissing for low-rank updates.
    """
    recipe, party = prepared.recipe, prepared.source
    options, facts = recipe.adaptation, party.facts
    assert options is not None
    teacher, held = options.teaching, prepared.corpus.validation
    method = method_of(teacher.tune, facts, prepared.device, recipe.memory_bytes)
    source = prepared.model(party, emit)
    asked = options.model_copy(
        update={
            "method": method,
            "epochs": teacher.tune_epochs,
            "max_steps": None,
            "learning_rate": teacher.tune_learning_rate,
            "patience": options.patience or PATIENCE,
            "gradient_checkpointing": options.gradient_checkpointing or method == "lora",
        }
    )
    mode, seed = recipe.calibration.chat_template, options.seeds[0]
    blocks, validation = (cut_blocks(texts, party.tokenizer, asked, mode) for texts in (samples, held))
    dtype = source.dtype if method == "lora" else torch.float32
    read = [[(block.ids, block.labels) for block in each] for each in (blocks, validation)]
    content = key("tune-1", facts.fingerprint, str(dtype), read, asked.that_affect("training"), seed)
    piece = TrainedPiece("source_tuned", seed, run.piece("tuned", content), content, party.checkpoint, "free")
    steps = steps_of(asked, len(blocks))

    def load() -> Any:
        return load_model(facts, torch.device("cpu"), dtype, facts.weight_bytes(dtype), emit)

    with Progress(emit, STAGE, f"Tuning {facts.label} on the training text", steps, "steps") as progress:

        def report(step: Step) -> None:
            progress.advance(max(0, step.step - progress.done), f"loss {step.loss:.3f}")

        if piece.path.exists():
            progress.skip(steps)
        else:
            require_one_process("adaptation.teacher.tune")
            fit(
                load, facts, party.checkpoint, None, blocks, validation, asked, seed, lambda model: (), piece.path,
                prepared.device, run, emit, report, embeddings,
            )  # fmt: skip
            progress.advance(steps - progress.done)
        variants = [Variant("source"), Variant("source_tuned", None, piece)]
        before, after = on_validation(prepared, party, variants, run, emit)
    said = f"the source tells the validation text in {after:.4f} bits per byte, {before:.4f} before ({method})"
    tuned = Tuned(piece, method, len(held), before, after)
    if tuned.helped:
        emit(Logged("info", f"tuned, {said}"))
    else:
        text = f"tuning did not help: {said}; the source teaches as it was"
        emit(Warned(STAGE, f"{text}, and adaptation.teacher.tune: none saves the time"))
    return tuned


def on_validation(
    prepared: Prepared, party: Party, variants: Sequence[Variant], run: RunDir, emit: Emit
) -> list[float]:
    """Bits per byte of the validation text, told by variants of one model; as a part of the stage that asks."""
    recipe, held = prepared.recipe, prepared.corpus.validation
    subject = prepared.model(party, emit)
    evaluator = Evaluator(subject, recipe.evaluation, recipe.calibration.max_length, recipe.seed, run, emit)
    with Progress(lambda event: None, STAGE, "", len(held) * len(variants), "texts") as progress:
        return [evaluator.scores(variant, held, progress).bits_per_byte for variant in variants]


def cut_blocks(samples: Sequence[Sample], tokenizer: Any, options: Adaptation, mode: str) -> list[Block]:
    """Texts as training has them. Raises DataError when there is nothing to learn in them."""
    length = options.block_length if options.packing == "pad" else 0
    examples = read_examples(samples, tokenizer, length, mode, options.answer_only)
    blocks = (pack_blocks if options.packing == "pack" else pad_blocks)(examples, options.block_length)
    if not blocks:
        raise DataError(
            f"{len(samples)} texts give nothing to learn", "text with at least two tokens", "give more text"
        )
    return blocks


def embeddings(model: Any) -> Collection[str]:
    """Parameters of the input embeddings and of the head, under all their names."""
    ends = {id(p) for end in (model.get_input_embeddings(), model.get_output_embeddings()) for p in end.parameters()}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in ends}


def method_of(asked: str, facts: ModelFacts, device: torch.device, budget: int | None) -> str:
    """full or lora; `auto`: full where the memory of the machine, or of the recipe, holds it."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        room = int(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = machine.memory()
        room = memory.limit or memory.total
    room = room if budget is None else min(room, budget)
    return "full" if PARAMETER * facts.parameters <= room else "lora"
