"""What a model's projections are and where they are stored: the logical q, k, v, o, gate, up, down of every layer.

A projection is a matrix W [d_out, d_in], out x in, with an optional bias [d_out]. In a checkpoint it may be a tensor of
its own, some rows of a tensor that holds several (a fused q, k, v), or either of these stored in x out. Everything
that works on projections goes through `take`, `put` and `output`, and never needs to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tmerge_tui.recipe import PROJECTIONS

SIDES = (
    *("qkv.in", "q.out", "k.out", "v.out", "o.in", "o.out"),
    *("mlp.in", "gate.out", "up.out", "down.in", "down.out"),
)
_SHARED_IN = {"q": "qkv.in", "k": "qkv.in", "v": "qkv.in", "gate": "mlp.in", "up": "mlp.in"}


def side_of(kind: str, end: Literal["in", "out"]) -> str:
    """The tensor that enters or leaves a projection; q, k, v share what enters them, and so do gate and up."""
    return _SHARED_IN.get(kind, f"{kind}.in") if end == "in" else f"{kind}.out"


@dataclass(frozen=True)
class Block:
    """Neurons of one projection in a tensor of several: `count` runs of `length`, one every `step`, from `start` on."""

    start: int
    length: int
    step: int = 0
    count: int = 1

    @property
    def size(self) -> int:
        return self.length * self.count

    def index(self) -> Tensor:
        """int64 [size], ascending."""
        runs = self.start + self.step * torch.arange(self.count)
        return (runs[:, None] + torch.arange(self.length)).flatten()

    def __str__(self) -> str:
        """`0-31`, or `0-7, 24-31, ... (4 runs)`."""
        firsts = [self.start + self.step * run for run in range(min(self.count, 2))]
        runs = ", ".join(f"{first}-{first + self.length - 1}" for first in firsts)
        return f"{runs}, ... ({self.count} runs)" if self.count > 2 else runs


@dataclass(frozen=True)
class Projection:
    """One logical projection. `module` is the path in the runtime model of the layer that computes it; `weight` and
    `bias` are names in the checkpoint's files of the tensors that hold it."""

    layer: int
    kind: str
    module: str
    weight: str
    bias: str | None
    d_out: int
    d_in: int
    block: Block | None = None  # its neurons in the module and in both tensors; None: all of them
    transposed: bool = False  # the weight is stored in x out

    def take(self, stored: Tensor) -> Tensor:
        """W [d_out, d_in] out of the stored weight, or the bias [d_out] out of the stored bias."""
        neurons = self._neurons(stored)
        return neurons if self.block is None else neurons[self.block.index().to(stored.device)]

    def put(self, stored: Tensor, values: Tensor) -> None:
        """The inverse of `take`, in place: what the other projections of a shared tensor have stored stays."""
        neurons = self._neurons(stored)
        neurons[slice(None) if self.block is None else self.block.index().to(stored.device)] = values

    def output(self, activations: Tensor) -> Tensor:
        """Its own activations [..., d_out] out of what the module returns."""
        if self.block is None:
            return activations
        if self.block.count == 1:
            return activations.narrow(-1, self.block.start, self.block.length)
        return activations[..., self.block.index().to(activations.device)]

    def locate(self, axis: Literal["rows", "columns"], index: Tensor) -> tuple[int, Tensor]:
        """(dimension, indices) in the stored weight of some rows or columns of W; in the stored bias, of some rows."""
        if axis == "rows" and self.block is not None:
            index = self.block.index().to(index.device)[index]
        # columns of a tensor of several projections would be theirs too
        assert axis == "rows" or self.block is None, f"columns of {self.module}, which holds several projections"
        return int((axis == "columns") != self.transposed), index

    def _neurons(self, stored: Tensor) -> Tensor:
        return stored.T if self.transposed and stored.ndim == 2 else stored


@dataclass(frozen=True)
class Space:
    """What one dimension of a tensor runs over: of two tensors in the same space, entry i is the same channel, head's
    channel, neuron or token. The names are those of `spaces.NAMES`; two that are `unknown` have nothing in common."""

    name: str
    size: int
    layer: int | None = None  # of a space that every layer has for itself


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the checkpoint's files, and the spaces along each of its dimensions, in the file's orientation.

    A dimension of several projections has the space of each, in the order q, k, v, gate, up; which of its rows are
    whose, their blocks say.
    """

    name: str
    role: str  # projection, embedding, position, head, norm, other
    spaces: tuple[tuple[Space, ...], ...]
    layer: int | None = None
    projections: tuple[Projection, ...] = ()  # that it holds
    note: str = ""  # why a space of it is not known

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(sum(space.size for space in spaces) for spaces in self.spaces)


@dataclass(frozen=True)
class Heads:
    """The attention heads of one layer."""

    queries: int
    keys: int  # and values
    channels: int  # of one head
    rotary: bool  # whether queries and keys are turned by their position


@dataclass(frozen=True)
class Layout:
    """The projections of a model, at most one of each kind in a layer, and what was found but cannot be used."""

    layers: int
    projections: tuple[Projection, ...]
    notes: tuple[str, ...]
    tensors: tuple[StoredTensor, ...] = ()  # every tensor of the files, once `spaces` has looked at them
    heads: tuple[Heads | None, ...] = ()  # of every layer, likewise; None without attention

    def get(self, layer: int, kind: str) -> Projection | None:
        return self._places.get((layer, kind))

    @cached_property
    def _places(self) -> dict[tuple[int, str], Projection]:
        return {(p.layer, p.kind): p for p in self.projections}

    def kinds(self, layer: int) -> tuple[str, ...]:
        return tuple(kind for kind in PROJECTIONS if self.get(layer, kind))

    def width(self, layer: int, side: str) -> int | None:
        """Channels n of a side, or None where the layer has no projection with that side."""
        for kind in PROJECTIONS:
            p = self.get(layer, kind)
            if p is not None and side in (side_of(kind, "in"), side_of(kind, "out")):
                return p.d_in if side == side_of(kind, "in") else p.d_out
        return None

    def sides(self, layer: int, kinds: Iterable[str]) -> tuple[str, ...]:
        """The distinct sides of those of `kinds` that the layer has, in the order of SIDES."""
        there = [kind for kind in kinds if self.get(layer, kind)]
        wanted = {side_of(kind, "in") for kind in there} | {side_of(kind, "out") for kind in there}
        return tuple(side for side in SIDES if side in wanted)

    @cached_property
    def _stored(self) -> dict[str, StoredTensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> StoredTensor:
        """Raises KeyError for a name that is not in the files."""
        return self._stored[name]

    def along(self, space: str) -> tuple[StoredTensor, ...]:
        """The tensors with a dimension in a space of that name, in every layer."""
        return tuple(t for t in self.tensors if any(s.name == space for spaces in t.spaces for s in spaces))

    @property
    def stored(self) -> str:
        """How the checkpoint keeps them when not in a tensor each: `q, k, v in one tensor; stored in x out`."""
        ways = []
        for kind, names in (("q", "q, k, v"), ("gate", "gate, up")):
            blocks = [p.block for p in self.projections if p.kind == kind and p.block is not None]
            if blocks:
                ways.append(f"{names} {'interleaved ' if any(b.count > 1 for b in blocks) else ''}in one tensor")
        if any(p.transposed for p in self.projections):
            ways.append("stored in x out")
        return "; ".join(ways)
