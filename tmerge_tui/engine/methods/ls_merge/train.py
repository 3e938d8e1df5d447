"""Training the autoencoder on both models' chunks (stage "autoencoder"): reconstruction alone, then beta KL beside it.

Loss: Huber of the chunks' numbers, and from the second phase on beta times the KL divergence of a latent number. At
several moments of each phase the target's own weights go through the autoencoder and tell the validation text; of the
second phase's moments the one that tells it best is kept, whatever the error of its weights. Every moment is a
checkpoint: order and noise depend on seed and step alone, so that what is taken up ends in the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tmerge_tui.engine.methods.ls_merge.vae import Shape, Vae
from tmerge_tui.engine.methods.ls_merge.windows import Batch, Windows
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import NumericsError, StorageError, UsageError
from tmerge_tui.events import Emit, TrainingStep, Warned
from tmerge_tui.recipe import LsMerge
from tmerge_tui.run_folder import RunDir, key

STAGE = "autoencoder"
LOGS = 200  # losses reported, at most
WARMUP = 0.05  # of the steps, in which the rate rises; then a cosine to zero
WEIGHT_DECAY = 1e-5
MAX_NORM = 5.0  # of a step's gradient
RECONSTRUCTION, KL = "reconstruction", "reconstruction and KL"


@dataclass(frozen=True)
class Moment:
    """A checkpoint: its loss since the last one, and the validation text told by the target's decoded weights."""

    step: int
    phase: str
    loss: float
    bits_per_byte: float


@dataclass
class Course:
    """How a training has gone so far."""

    step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    @property
    def best(self) -> Moment:
        """Of the last phase; of equals the first."""
        last = self.moments[-1].phase
        told = [moment for moment in self.moments if moment.phase == last]
        return min(told, key=lambda moment: moment.bits_per_byte)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Course:
        curve = [(step, loss) for step, loss in plain["curve"]]
        return cls(plain["step"], curve, [Moment(**moment) for moment in plain["moments"]])


@dataclass(frozen=True)
class Plan:
    """What is trained, and for how long."""

    shape: Shape
    per_epoch: int
    first: int  # steps of reconstruction alone
    steps: int
    moments: tuple[int, ...]

    @classmethod
    def of(cls, shape: Shape, options: LsMerge, per_epoch: int) -> Plan:
        first = max(1, round(options.epochs * per_epoch))
        second = math.ceil(options.kl_epochs * per_epoch)
        count = options.checkpoints
        ends = [math.ceil(first * i / count) for i in range(1, count + 1)]
        ends += [first + math.ceil(second * i / count) for i in range(1, count + 1)] if second else []
        return cls(shape, per_epoch, first, first + second, tuple(dict.fromkeys(ends)))

    def phase(self, step: int) -> str:
        return RECONSTRUCTION if step <= self.first else KL


def train(
    windows: Windows,
    plan: Plan,
    options: LsMerge,
    seed: int,
    content: str,  # names everything that the outcome depends on
    device: torch.device,
    run: RunDir,
    emit: Emit,
    tell: Callable[[Vae, int], float],  # bits per byte of validation text by the decoded target, at a step
) -> tuple[Path, Course]:
    """(the piece of the chosen moment's weights, how it went); an unfinished training is taken up.

    Raises NumericsError when the loss is not finite, UsageError under a launcher, StorageError.
    """
    path = run.piece("autoencoder", content)
    work = _Training(windows, plan, options, seed, device, run, emit, run.piece("autoencoder-at", content))
    with Progress(emit, STAGE, "Training the autoencoder of weights", plan.steps, "steps") as progress:
        if path.exists():
            progress.skip(plan.steps)
        else:
            _require_one_process()
            work.go(progress, tell)
            run.save(path, work.kept, work.course.plain())
            work.path.unlink(missing_ok=True)
    return path, Course.of(run.load(path)[1])


def load(path: Path, shape: Shape, run: RunDir, device: torch.device) -> Vae:
    """The trained autoencoder, in fp32. Raises StorageError."""
    vae = Vae(shape)
    vae.load_state_dict(run.load(path)[0])
    return vae.to(device).eval().requires_grad_(False)


@dataclass
class _Training:
    windows: Windows
    plan: Plan
    options: LsMerge
    seed: int
    device: torch.device
    run: RunDir
    emit: Emit
    path: Path  # of the checkpoint
    course: Course = field(default_factory=Course)
    kept: dict[str, Tensor] = field(default_factory=dict)  # weights of the best moment
    losses: list[float] = field(default_factory=list)  # since the last report

    def go(self, progress: Progress, tell: Callable[[Vae, int], float]) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # what an earlier training in this process has set is its own
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            cpu=self.device.type == "cpu", device_placement=False, mixed_precision="bf16" if self.options.bf16 else "no"
        )
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                vae = Vae(self.plan.shape).to(self.device)
            optimizer = torch.optim.AdamW(
                vae.parameters(), lr=self.options.learning_rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY
            )
            self._take_up(vae, optimizer)
            progress.skip(self.course.step)
            model, prepared = accelerator.prepare(vae, optimizer)
            self._steps(accelerator, model, vae, prepared, progress, tell)
        finally:
            accelerator.free_memory()
            AcceleratorState._reset_state(reset_partial_state=True)

    def _steps(
        self, accelerator: Any, model: Any, vae: Vae, optimizer: Any, progress: Progress,
        tell: Callable[[Vae, int], float],
    ) -> None:  # fmt: skip
        plan, course = self.plan, self.course
        every = max(1, plan.steps // LOGS)
        since: list[float] = []  # the last moment
        read, began = 0, time.monotonic()
        order: list[list[tuple[int, int]]] = []
        for step in range(course.step + 1, plan.steps + 1):
            epoch, place = divmod(step - 1, plan.per_epoch)
            if not order or not place:
                order = self.windows.epoch(self.seed, epoch)
            batch = self.windows.batch(order[place]).to(self.device)
            for group in optimizer.param_groups:
                group["lr"] = self._rate(step)
            loss = self._loss(model, batch, step)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(vae.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
            value = loss.item()
            self.losses.append(value)
            since.append(value)
            if not math.isfinite(value):
                raise NumericsError(
                    "the autoencoder's loss is not finite", "a loss that falls", "use a smaller ls_merge.learning_rate"
                )
            read += int(batch.mask.sum())
            if step % every == 0 or step == plan.steps:
                mean = sum(self.losses) / len(self.losses)
                course.curve.append((step, mean))
                rate = read / max(1e-9, time.monotonic() - began)
                self.emit(TrainingStep(STAGE, self.seed, step, plan.steps, mean, self._rate(step), rate))
                self.losses = []
            if step in plan.moments:
                course.step = step
                told = tell(vae, step)
                course.moments.append(Moment(step, plan.phase(step), sum(since) / len(since), told))
                self._keep(vae, optimizer)
                since = []
            progress.advance(1, f"loss {value:.4f}, {plan.phase(step)}")

    def _loss(self, model: Any, batch: Batch, step: int) -> Tensor:
        kl = step > self.plan.first
        noise = None
        if kl:
            dice = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            shape = (*batch.x.shape[:2], self.plan.shape.latent)
            noise = torch.randn(shape, generator=dice).to(self.device)
        decoded, divergence = model(batch.x, batch.depth, batch.kind, batch.mask, noise)
        loss = F.huber_loss(decoded[batch.weights], batch.x[batch.weights])
        return loss + self.options.beta * divergence[batch.mask].mean() if kl else loss

    def _rate(self, step: int) -> float:
        total = self.plan.steps
        rising = max(1, math.ceil(WARMUP * total))
        if step <= rising:
            return self.options.learning_rate * step / rising
        return self.options.learning_rate * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))) / 2

    def _keep(self, vae: Vae, optimizer: Any) -> None:
        """Writes the checkpoint: weights, moments of the optimiser, the best weights so far, losses not reported."""
        weights = {name: value.detach().cpu().clone() for name, value in vae.state_dict().items()}
        best = self.course.best.step == self.course.step
        tensors = {f"now.{name}": value for name, value in weights.items()}
        if best:
            self.kept = weights
        else:
            tensors |= {f"best.{name}": value for name, value in self.kept.items()}
        for place, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{name}": torch.as_tensor(value) for name, value in state.items()}
        self.run.save(self.path, tensors, self.course.plain() | {"losses": self.losses})

    def _take_up(self, vae: Vae, optimizer: torch.optim.Optimizer) -> None:
        """The checkpoint of an earlier run, if it is whole."""
        if not self.path.exists():
            return
        try:
            tensors, meta = self.run.load(self.path)
        except StorageError as error:
            self.emit(Warned(STAGE, f"a checkpoint is damaged and not taken up, training begins again: {error.found}"))
            self.path.unlink()
            return
        vae.load_state_dict(_under("now.", tensors))
        self.kept = _under("best.", tensors) or _under("now.", tensors)
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            place, _, what = name.partition(".")
            states.setdefault(int(place), {})[what] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        self.course, self.losses = Course.of(meta), meta["losses"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def content_of(prints: list[str], kinds: list[str], plan: Plan, options: LsMerge, seed: int, device: str) -> str:
    """Names an autoencoder's training; devices round otherwise, and so do not share one."""
    chosen = {**options.that_affect("plans"), **vars(plan.shape)}
    return key("ls-autoencoder-1", prints, kinds, chosen, seed, device)


def _require_one_process() -> None:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    if there and torch.distributed.get_world_size() > 1:
        raise UsageError(
            "ls_merge trains its autoencoder in one process, before the trainings that a launcher spreads",
            "its finished piece in the run folder",
            "run the recipe with tmerge --batch, stop it when the stage adapt begins, and launch again",
        )
