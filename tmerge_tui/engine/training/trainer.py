"""One training on transformers' Trainer: the loss, the events, the checkpoints. `adapt` says what is trained.

The Trainer brings the loop, accumulation, schedule, clipping, mixed precision, resuming and, under `accelerate launch`,
several GPUs. Checkpoints hold the trainable tensors alone (and optimiser, schedule and random state): what is frozen is
built anew from the pieces of the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tmerge_tui.engine.training.checkpoints import WEIGHTS, last_checkpoint
from tmerge_tui.engine.training.examples import IGNORED, Block, collate
from tmerge_tui.engine.training.loss import Term
from tmerge_tui.errors import NumericsError
from tmerge_tui.files import renamed
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.run_folder import open_piece

LOGS = 200  # losses reported in one training, at most
MEASUREMENTS = 10  # of the validation split in one training
SCHEDULES = {"constant": "constant_with_warmup", "stable": "warmup_stable_decay"}  # as transformers calls them
FALL = 1 / 6  # of the steps of a stable schedule, the last
TOLD = "eval_bits_per_byte"  # what the Trainer calls what `told` says


@dataclass(frozen=True)
class Step:
    """What is known after an optimiser step."""

    step: int
    steps: int
    loss: float  # mean since the last report: next-token loss with what distillation and hints add
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class Trained:
    """How a training went."""

    steps: int
    tokens: int  # that this device has read
    loss: float  # of the last report
    seconds: float
    curve: tuple[tuple[int, float], ...]  # (step, loss)
    measured: tuple[tuple[int, float], ...] = ()  # (step, next-token loss of the validation split)
    told: tuple[tuple[int, float], ...] = ()  # epochs: auto: (step, bits per byte of the validation text), from 0
    decayed: float | None = None  # the same after the rate had fallen; below all others, it is what was kept


@dataclass
class Counter:
    tokens: int = 0
    before: int = 0  # of them, those read before this process took the training up
    curve: list[tuple[int, float]] = field(default_factory=list)
    measured: list[tuple[int, float]] = field(default_factory=list)

    def require_finite(self) -> None:
        """Raises NumericsError unless the last loss is a number."""
        if not self.curve or not math.isfinite(self.curve[-1][1]):
            raise NumericsError(
                "the training loss is not finite", "a loss that falls", "use a smaller adaptation.learning_rate"
            )


def train(
    model: Any,  # float32, parameters that train require gradients
    blocks: Sequence[Block],
    validation: Sequence[Block],  # empty: no early stopping
    options: Adaptation,
    seed: int,
    terms: Sequence[Term],
    folder: Path,  # of the checkpoints; an unfinished training there is taken up; removed by the caller
    device: torch.device,
    report: Callable[[Step], None],
    warn: Callable[[str], None],
) -> Trained:
    """Trains `model` in place. Raises NumericsError when the loss is not finite, StorageError when the best checkpoint
    is gone at the end."""
    steps, validated = steps_of(options, len(blocks)), bool(validation)
    every = max(1, steps // (MEASUREMENTS if validated else options.checkpoints))
    assert not isinstance(options.epochs, str), "patience trains such"
    counter = Counter()
    arguments = arguments_of(
        options, seed, folder, device, steps,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        lr_scheduler_type=SCHEDULES.get(options.schedule, options.schedule),
        lr_scheduler_kwargs={"num_decay_steps": math.ceil(FALL * steps), "decay_type": "linear"}
        if options.schedule == "stable"
        else {},
        warmup_steps=math.ceil(options.warmup * steps),
        save_steps=every,
        save_total_limit=1,
        eval_strategy="steps" if validated else "no",
        eval_steps=every,
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
    )  # fmt: skip
    trainer = make_trainer(model, arguments, blocks, validation, options, terms, counter, report)
    if options.patience and validation:
        trainer.add_callback(EarlyStoppingCallback(options.patience))
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder, warn))
    seconds = time.monotonic() - began
    counter.require_finite()
    state = trainer.state
    return Trained(
        state.global_step, counter.tokens, counter.curve[-1][1], seconds, tuple(counter.curve), tuple(counter.measured)
    )


def make_trainer(
    model: Any,
    arguments: TrainingArguments,
    blocks: Sequence[Block],
    validation: Sequence[Block],
    options: Adaptation,
    terms: Sequence[Term],
    counter: Counter,
    report: Callable[[Step], None],
) -> LossTrainer:
    """One loop over the blocks; `counter` and `report` learn how it goes."""
    if options.gradient_checkpointing:
        # named anew in transformers 5.2x; the hooks of hints need the variant that runs a layer's forward as it is
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    trainer = LossTrainer(
        model=model,
        args=arguments,
        train_dataset=_Blocks(blocks),
        eval_dataset=_Blocks(validation) if validation else None,
        data_collator=collate,
    )
    trainer.terms, trainer.counter = terms, counter
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(counter, report))
    return trainer


def steps_of(options: Adaptation, blocks: int) -> int:
    """Optimiser steps on one device; with epochs: auto at most."""
    if options.max_steps is not None:
        return options.max_steps
    return max(1, math.ceil(options.passes * steps_of_pass(options, blocks)))


def steps_of_pass(options: Adaptation, blocks: int, devices: int = 1) -> int:
    """Optimiser steps in which every block is read once."""
    return max(1, math.ceil(math.ceil(blocks / (options.batch_size * devices)) / options.accumulation))


def processes() -> int:
    """How many train together."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


def arguments_of(
    options: Adaptation, seed: int, folder: Path, device: torch.device, steps: int, **own: Any
) -> TrainingArguments:
    """What all trainings share, and how long this one is, how its rate goes and when it is measured and kept."""
    assert isinstance(options.learning_rate, float), "it has not been chosen yet"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_norm,
        optim="adamw_torch",
        bf16=options.bf16,
        logging_steps=max(1, steps // LOGS),
        logging_nan_inf_filter=False,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        **{"save_strategy": "steps", **own},
    )
    if arguments.device.type == "cuda":
        arguments._n_gpu = 1  # one process, one GPU: several are `accelerate launch`'s, not DataParallel's
    return arguments


class _Blocks(torch.utils.data.Dataset[Block]):
    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, i: int) -> Block:
        return self.blocks[i]


class LossTrainer(Trainer):
    control: TrainerControl
    lr_scheduler: Any
    terms: Sequence[Term]
    counter: Counter
    rate: Callable[[int], float] | None = None  # share of the learning rate at a step; None: as the arguments say
    told: Callable[[], float] | None = None  # bits per byte of the validation text, in place of its loss

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # so that labels are counted over the whole accumulated batch
        self.loss_is_scaled_for_ga = True  # and `compute_loss` divides by them

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum over labels / labels of the accumulated batch, and the terms beside it.

        What the terms replace is taken from the next token's share (`loss`).
        """
        terms = self.terms if model.training else ()
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        if model.training:
            self.counter.tokens += inputs["tokens"]
        with ExitStack() as stack:
            for term in terms:
                stack.enter_context(term.watching())
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        following = labels[:, 1:]
        counted = (following != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = F.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), following.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss = loss / counted
        passes = getattr(self, "current_gradient_accumulation_steps", 1)
        if model.training:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, labels were summed
        loss = (1 - sum(term.weight for term in terms if term.replaces)) * loss
        for term in terms:
            value, count = term.loss(inputs, logits)
            loss = loss + term.weight * value / max(1, count) / passes
        return (loss, logits) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        if self.told is None:
            return super().evaluate(*args, **options)
        metrics = {TOLD: self.told()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.rate is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # not reported

    def _trainable(self) -> dict[str, Any]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._trainable().items()}
        with renamed(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", "tokens": str(self.counter.tokens)})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.counter.tokens = self.counter.before = self.restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        # by its name: the run folder may have been moved since it was written
        self.restore(Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name)

    @torch.no_grad()
    def restore(self, folder: Path) -> int:
        """Puts the weights of a checkpoint into the model; the tokens it had read. Raises StorageError."""
        mine = self._trainable()
        with open_piece(folder / WEIGHTS) as file:
            assert set(file.keys()) == mine.keys(), f"{folder} belongs to another training"
            for name, parameter in mine.items():
                parameter.copy_(file.get_tensor(name))
            return int(file.metadata()["tokens"])


class _Report(TrainerCallback):
    def __init__(self, counter: Counter, report: Callable[[Step], None]) -> None:
        self.counter, self.report = counter, report
        self.began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()
        for name, points in (("loss", self.counter.curve), ("eval_loss", self.counter.measured)):
            points[:] = [(e["step"], e[name]) for e in state.log_history if name in e]  # from a checkpoint

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            self.counter.measured.append((state.global_step, logs["eval_loss"]))
        if "loss" not in logs:
            return
        self.counter.curve.append((state.global_step, logs["loss"]))
        rate = (self.counter.tokens - self.counter.before) / max(1e-9, time.monotonic() - self.began)
        self.report(Step(state.global_step, state.max_steps, logs["loss"], logs.get("learning_rate", 0.0), rate))
