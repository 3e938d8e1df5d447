"""Ground costs: how unlike two channels are, by what they say on the calibration text or by their weights.

Both are 1 - cosine, in [0, 2]: of z-scored activations (the paper's eq. 7), or of a channel's rows and columns of the
matrices that write and read it, the source's carried to the target's basis by the maps that are known already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tmerge_tui.engine.activations.extract import Activations
from tmerge_tui.engine.methods.ot_fusion.channel_map import ChannelMap
from tmerge_tui.engine.methods.ot_fusion.heads import KINDS, HeadMaps
from tmerge_tui.engine.methods.transport_merge.feature_plans import ZScores
from tmerge_tui.engine.methods.transport_merge.structure import NEURONS
from tmerge_tui.errors import ModelError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import Layout
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.parameters import read_weight

ADDED = ("o.out", "down.out")  # to the residual stream
OF_HEADS = {"q": "q.out", "k": "k.out", "v": "v.out", "o": "o.in"}


@dataclass(frozen=True)
class Compared:
    """A cost [n, n'] and how strong the channels are, [n] and [n']."""

    C: Tensor
    strength: Pair[Tensor]


@dataclass(frozen=True)
class LayerMaps:
    """What is matched in a pair of layers; None where the two do not both have it."""

    heads: HeadMaps | None
    neurons: ChannelMap | None
    cost: float | None  # of the neurons


Layers = Callable[[int, int, ChannelMap], LayerMaps]  # (l, m, residual map)


class Ground(Protocol):
    def stream(self) -> Compared:
        """The residual stream as the tokens enter it."""

    def added(self, l: int, m: int, R: ChannelMap | None, layers: Layers) -> Iterator[Compared]:
        """What the layers add to it. R: a first map, where `needs_map`."""

    @property
    def needs_map(self) -> bool: ...

    def neurons(self, l: int, m: int, R: ChannelMap) -> Compared: ...

    def heads(self, l: int, m: int, R: ChannelMap) -> tuple[dict[str, Tensor], Pair[Tensor]]:
        """Costs of q, k, v, o and the strength of what enters o."""


@dataclass(frozen=True)
class ActivationGround:
    models: Pair[Activations]
    z: Pair[ZScores]
    needs_map = False

    @classmethod
    def of(cls, models: Pair[Activations], device: torch.device) -> ActivationGround:
        z = {role: ZScores(model, role, device) for role, model in models.items()}
        return cls(models, Pair(target=z["target"], source=z["source"]))

    def stream(self) -> Compared:
        first = self.models.each(lambda model: next(l for l in range(model.layers) if "qkv.in" in _sides(model, l)))
        return self._compared(first.target, first.source, "qkv.in")

    def added(self, l: int, m: int, R: ChannelMap | None, layers: Layers) -> Iterator[Compared]:
        for side in self._both(l, m, ADDED):
            yield self._compared(l, m, side)

    def neurons(self, l: int, m: int, R: ChannelMap) -> Compared:
        sides = self._both(l, m, NEURONS)
        C = torch.stack([self._cost(l, m, side) for side in sides]).mean(0)
        return Compared(C, self._strength(l, m, "down.in"))

    def heads(self, l: int, m: int, R: ChannelMap) -> tuple[dict[str, Tensor], Pair[Tensor]]:
        return {kind: self._cost(l, m, side) for kind, side in OF_HEADS.items()}, self._strength(l, m, "o.in")

    def _both(self, l: int, m: int, sides: tuple[str, ...]) -> list[str]:
        there = set(_sides(self.models.target, l)) & set(_sides(self.models.source, m))
        return [side for side in sides if side in there]

    def _compared(self, l: int, m: int, side: str) -> Compared:
        return Compared(self._cost(l, m, side), self._strength(l, m, side))

    def _cost(self, l: int, m: int, side: str) -> Tensor:
        return 1 - self.z.target(l, side).T @ self.z.source(m, side)

    def _strength(self, l: int, m: int, side: str) -> Pair[Tensor]:
        X, Y = self.models.target.side(l, side), self.models.source.side(m, side)
        return Pair(target=X.abs().mean(0), source=Y.abs().mean(0))


def _sides(model: Activations, layer: int) -> tuple[str, ...]:
    return model.layout.sides(layer, model.layout.kinds(layer))


@dataclass(frozen=True)
class WeightGround:
    checkpoints: Pair[Checkpoint]
    layouts: Pair[Layout]
    tokens: Tensor  # int64 [S, 2]: rows of both embeddings for the same tokens
    device: torch.device
    needs_map = True

    def stream(self) -> Compared:
        """By the embeddings of shared tokens. Raises ModelError where there are none."""
        names = self.layouts.each(embedding_of)
        if names.target is None or names.source is None or not len(self.tokens):
            raise ModelError(
                "no token that both models have, or embeddings that are not as wide as the residual stream",
                "shared tokens to compare the residual streams by",
                "set ot_fusion.cost: activations",
            )
        E = self.checkpoints.target.read(names.target, rows=self.tokens[:, 0])
        F = self.checkpoints.source.read(names.source, rows=self.tokens[:, 1])
        return self._compared(self._float(E).T, self._float(F).T)

    def added(self, l: int, m: int, R: ChannelMap | None, layers: Layers) -> Iterator[Compared]:
        assert R is not None
        maps = layers(l, m, R)
        through = {"o": None if maps.heads is None else maps.heads.o, "down": maps.neurons}
        for kind, into in through.items():
            if into is not None:
                yield self._compared(self._read("target", l, kind), into.read(self._read("source", m, kind)))

    def neurons(self, l: int, m: int, R: ChannelMap) -> Compared:
        there = [set(layout.kinds(at)) for layout, at in ((self.layouts.target, l), (self.layouts.source, m))]
        costs = [self._reading(l, m, kind, R) for kind in ("gate", "up") if kind in there[0] & there[1]]
        down = self._writing(l, m, "down", R)
        return Compared(torch.stack([*(each.C for each in costs), down.C]).mean(0), costs[-1].strength)

    def heads(self, l: int, m: int, R: ChannelMap) -> tuple[dict[str, Tensor], Pair[Tensor]]:
        found = {kind: self._reading(l, m, kind, R) for kind in ("q", "k", "v")} | {"o": self._writing(l, m, "o", R)}
        return {kind: found[kind].C for kind in KINDS}, found["o"].strength

    def _reading(self, l: int, m: int, kind: str, R: ChannelMap) -> Compared:
        """By rows, whose entries are channels of the stream."""
        return self._compared(self._read("target", l, kind), R.read(self._read("source", m, kind)))

    def _writing(self, l: int, m: int, kind: str, R: ChannelMap) -> Compared:
        """By columns."""
        return self._compared(self._read("target", l, kind).T, R.write(self._read("source", m, kind)).T)

    def _read(self, role: str, layer: int, kind: str) -> Tensor:
        layout, checkpoint = getattr(self.layouts, role), getattr(self.checkpoints, role)
        return self._float(read_weight(checkpoint, layout.get(layer, kind)))

    def _float(self, W: Tensor) -> Tensor:
        return W.to(self.device, torch.float32)

    def _compared(self, A: Tensor, B: Tensor) -> Compared:
        """Rows of A [n, k] with rows of B [n', k]."""
        norms = A.norm(dim=1), B.norm(dim=1)
        rows = [X / norm.clamp_min(1e-30)[:, None] for X, norm in zip((A, B), norms, strict=True)]
        return Compared(1 - rows[0] @ rows[1].T, Pair(target=norms[0], source=norms[1]))


def embedding_of(layout: Layout) -> str | None:
    """The tensor of token embeddings [vocab, residual]; None where they are narrower than the stream."""
    for tensor in layout.along("vocab"):
        if tensor.role == "embedding" and [spaces[0].name for spaces in tensor.spaces] == ["vocab", "residual"]:
            return tensor.name
    return None
