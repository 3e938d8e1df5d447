"""What every forward pass of the house needs: a model that loads when it is first used, its trunk, hooks on its
projections, padding, and batches that become smaller when memory runs out."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tmerge_tui.errors import MemoryShortage, ModelError
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.layout import Layout, Projection, side_of

Made = TypeVar("Made")
End = Literal["in", "out"]
ENDS: tuple[End, ...] = ("in", "out")
FULL = 512  # tokens that keep a processor busy: below it padding costs less than another pass
PADDING = 0.05  # of a batch, at most, where it is full
ALLOCATION_FAILED = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that is needed to run it. `load` is called when it is first needed, and not before."""

    role: str  # "source" | "target"
    facts: ModelFacts
    tokenizer: Any
    load: Callable[[], nn.Module]  # in eval mode, on `device`
    device: torch.device
    dtype: torch.dtype  # of the forward pass


@dataclass(frozen=True)
class HookPoint:
    """One side of one layer, where the model computes it: what enters or what leaves a projection's module."""

    projection: Projection
    end: End

    @property
    def side(self) -> str:
        return side_of(self.projection.kind, self.end)

    def take(self, seen: Tensor) -> Tensor:
        """The side's own activations [..., n] out of what the module was given or gave: of a fused q, k, v its part."""
        return seen if self.end == "in" else self.projection.output(seen)


def hook_point(layout: Layout, layer: int, side: str) -> HookPoint:
    """Where a side is computed: at the first projection that has it. Raises KeyError when the layer has none."""
    for projection in layout.projections:
        for end in ENDS:
            point = HookPoint(projection, end)
            if (projection.layer, point.side) == (layer, side):
                return point
    raise KeyError(f"{layer}.{side}")


@contextmanager
def record(model: nn.Module, points: Iterable[HookPoint], see: Callable[[HookPoint, Tensor], None]) -> Iterator[None]:
    """Inside the block, `see` gets the tensor at each of `points` whenever the model computes it.

    It is the module's tensor as it is, gradients and all; `HookPoint.take` makes the side's own activations of it. What
    `see` computes at once becomes part of the forward pass: with gradient checkpointing it may only keep the tensor. An
    output is to be used at once or kept as a clone, since some models go on to add to it in place (Falcon).
    """

    def hook(point: HookPoint, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        see(point, args[0] if point.end == "in" else output)

    handles = [
        model.get_submodule(point.projection.module).register_forward_hook(partial(hook, point)) for point in points
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trunk(model: nn.Module) -> nn.Module:
    """The decoder without its language-model head. Raises ModelError when the model has none."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    if decoder is None or decoder is model:
        raise ModelError(
            f"{type(model).__name__} has no decoder apart from its head", "a causal language model", "check the model"
        )
    return decoder


def padded(
    texts: Sequence[Sequence[int]], device: torch.device | str = "cpu", filler: int = 0
) -> tuple[Tensor, Tensor]:
    """(numbers, mask), int64 [B, T] each, T the length of the longest: padded on the right, where the mask is 0.

    Any token does as `filler`: what is masked is not seen, and what comes later is not seen by what came before.
    """
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[filler] * (width - len(text))] for text in texts], device=device)
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device)
    return ids, mask


class Batches:
    """Texts in batches of as many tokens as `size` of the longest have; halved, for good, whenever memory runs out.

    Texts of a batch are of about one length: once it has FULL tokens it takes none that would pad more than PADDING of
    it. So short texts are read in larger batches, and little of a batch is padding.
    """

    def __init__(self, name: str, size: int, device: torch.device, warn: Callable[[str], None]) -> None:
        self.name, self.size, self.device, self.warn = name, size, device, warn  # the model's name, for errors
        self.most: float = math.inf  # tokens that have fitted into memory

    def run(
        self, lengths: Mapping[int, int], forward: Callable[[Sequence[int]], Made]
    ) -> Iterator[tuple[Sequence[int], Made]]:
        """(numbers of some texts, what `forward` made of them), the longest texts first.

        lengths: number of a text -> its tokens. Raises MemoryShortage when one text alone does not fit, and whatever
        else `forward` raises.
        """
        waiting = sorted(lengths, key=lambda number: -lengths[number])
        room = self.size * max(lengths.values(), default=0)
        while waiting:
            batch = waiting[: _alike([lengths[number] for number in waiting], min(room, self.most))]
            try:
                made = forward(batch)
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise MemoryShortage(
                        f"{self.name}: no memory for one text of {lengths[batch[0]]} tokens on {self.device}",
                        "memory for a forward pass of a single text",
                        "lower calibration.max_length, set memory: to stream the weights, or use another device",
                    ) from error
            else:
                waiting = waiting[len(batch) :]
                yield batch, made
                continue
            # after the except block, so that the failed pass and its tensors are gone
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(batch) // 2
            self.most = half * lengths[batch[0]]
            self.warn(f"out of memory: batch size is now {half}")


def _alike(lengths: Sequence[int], room: float) -> int:
    """How many of the first texts, longest first, make a batch of at most `room` tokens; at least one."""
    width, read = lengths[0], 0
    for count, length in enumerate(lengths):
        whole = (count + 1) * width
        if count and (whole > room or (count * width >= FULL and read + length < (1 - PADDING) * whole)):
            return count
        read += length
    return len(lengths)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in ALLOCATION_FAILED)


def release() -> None:
    """Gives back what a model that nobody holds any more has taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
