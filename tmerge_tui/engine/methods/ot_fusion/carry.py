"""Every tensor of the target as the source would have it: moved = Phi_out W Phi_in^T through the maps of its spaces.

One layer of both models is in memory at a time, then what belongs to none. Entries whose channel is matched with none
stay the target's. Beside each tensor stands its placebo of the same norm, carried through maps whose source channels
come in a random order, one order for each space.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.engine.methods.ot_fusion.channel_map import ChannelMap
from tmerge_tui.engine.methods.ot_fusion.counterparts import counterpart, norm_slots
from tmerge_tui.engine.methods.ot_fusion.ground import LayerMaps
from tmerge_tui.engine.methods.transport_merge.channel_maps import permutation
from tmerge_tui.errors import NumericsError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.families.norms import norm_offset
from tmerge_tui.models.layout import Projection, StoredTensor
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.parameters import read_bias, read_weight
from tmerge_tui.recipe import ATTENTION, PROJECTIONS

PARTS = ("attention", "feed_forward", "norms", "embeddings")  # that can have a strength of their own


@dataclass(frozen=True)
class Moved:
    """What one tensor of the target's file becomes at alpha 1."""

    name: str
    part: str  # of PARTS
    values: Tensor  # fp32, in the file's orientation; the rows at `index` alone where there is one
    permuted: Tensor | None  # the placebo's, if it was asked for
    index: Tensor | None = None  # int64 [k]


@dataclass(frozen=True)
class Block:
    """A projection's weight or bias, or a whole tensor: what is carried at once."""

    name: str
    part: str
    own: Tensor  # fp32
    projection: Projection | None = None
    total: list[Tensor] = field(default_factory=list)  # moved, then the placebo's
    weight: list[float] = field(default_factory=list)  # of the source layers that gave something


@dataclass(frozen=True)
class Maps:
    """Of one pair of layers."""

    R: ChannelMap
    layer: LayerMaps

    def of(self, kind: str) -> tuple[ChannelMap, ChannelMap] | None:
        """(Phi_out, Phi_in) of a projection; None where a space of it has no map."""
        heads, neurons = self.layer.heads, self.layer.neurons
        if kind in ATTENTION:
            if heads is None:
                return None
            return {"q": (heads.q, self.R), "k": (heads.k, self.R), "v": (heads.v, self.R), "o": (self.R, heads.o)}[
                kind
            ]
        if neurons is None:
            return None
        return (self.R, neurons) if kind == "down" else (neurons, self.R)

    def permuted(self, seed: int, m: int) -> Maps:
        """The placebo: all source channels of a space in one random order."""

        def shuffled(made: ChannelMap, space: str, layer: int) -> ChannelMap:
            return made.permuted(permutation(seed, space, layer, made.shape[1]))

        heads, neurons = self.layer.heads, self.layer.neurons
        if heads is not None:
            spaces = {"q": "heads.q", "k": "heads.kv", "v": "heads.kv", "o": "heads.q", "head": "head"}
            mixed = {name: shuffled(getattr(heads, name), space, m) for name, space in spaces.items()}
            heads = type(heads)(cost=heads.cost, pairs=heads.pairs, **mixed)
        neurons = None if neurons is None else shuffled(neurons, "mlp", m)
        return Maps(shuffled(self.R, "residual", 0), LayerMaps(heads, neurons, self.layer.cost))


class Carrier:
    """`seed`: of the placebo; None leaves it out."""

    def __init__(self, facts: Pair[ModelFacts], checkpoints: Pair[Checkpoint], seed: int | None) -> None:
        self.facts, self.checkpoints, self.seed = facts, checkpoints, seed
        self.layouts = facts.each(lambda each: each.layout)
        self.norms = facts.each(norm_slots)
        self.left: list[str] = []  # tensors of the target without a counterpart

    def layer(self, l: int, maps: Sequence[tuple[int, float, Maps]]) -> tuple[list[Moved], list[dict[str, Any]]]:
        """(what becomes of target layer l, figures of its projections); `maps`: of source layers, and their weights."""
        blocks: dict[tuple[str, str], Block] = {}
        for m, weight, found in maps:
            placebo = None if self.seed is None else found.permuted(self.seed, m)
            for kind in PROJECTIONS:
                self._projection(l, m, kind, weight, found, placebo, blocks)
            for tensor in self.layouts.target.tensors:
                if tensor.role == "norm" and tensor.layer == l:
                    self._norm(tensor, m, weight, found, placebo, blocks)
        moved = list(self._joined(blocks))
        carried = {name for name, _ in blocks}
        self.left += [t.name for t in self.layouts.target.tensors if t.layer == l and t.name not in carried]
        weights = [b for b in blocks.values() if b.projection is not None and b.own.ndim == 2]
        return moved, [_figures(b.projection, b) for b in weights if b.projection is not None]

    def outside(self, R: ChannelMap, tokens: Tensor, scale: float) -> list[Moved]:
        """What becomes of tensors that belong to no layer: embeddings, positions, head, the last norm.

        tokens: int64 [S, 2], rows of the same token. scale: of the source's embeddings beside the target's.
        """
        maps = Maps(R, LayerMaps(None, None, None))
        placebo = None if self.seed is None else maps.permuted(self.seed, 0)
        moved = []
        for tensor in self.layouts.target.tensors:
            if tensor.layer is not None:
                continue
            blocks: dict[tuple[str, str], Block] = {}
            if tensor.role == "norm":
                self._norm(tensor, None, 1.0, maps, placebo, blocks)
            made = list(self._joined(blocks)) or self._rows(tensor, R, placebo, tokens, scale)
            moved += made
            if not made and not (tensor.role == "head" and self.facts.target.tied):
                self.left.append(tensor.name)
        return moved

    def _projection(
        self, l: int, m: int, kind: str, weight: float, maps: Maps, placebo: Maps | None, blocks: dict[Any, Block]
    ) -> None:
        ours, theirs = self.layouts.target.get(l, kind), self.layouts.source.get(m, kind)
        both = maps.of(kind)
        if ours is None or theirs is None or both is None:
            return
        part = "attention" if kind in ATTENTION else "feed_forward"
        other = None if placebo is None else placebo.of(kind)
        W = read_weight(self.checkpoints.source, theirs)
        values = [_carried(out, W, into) for out, into in [both, *([] if other is None else [other])]]
        covered = both[0].covered[:, None] & both[1].covered
        own = read_weight(self.checkpoints.target, ours)
        self._add(blocks, ours.weight, kind, part, own, ours, weight, values, covered)
        bias, b = read_bias(self.checkpoints.target, ours), read_bias(self.checkpoints.source, theirs)
        if bias is not None and b is not None and ours.bias is not None:
            values = [out.write(b) for out, _ in [both, *([] if other is None else [other])]]
            self._add(blocks, ours.bias, kind, part, bias, ours, weight, values, both[0].covered)

    def _norm(
        self,
        tensor: StoredTensor,
        m: int | None,
        weight: float,
        maps: Maps,
        placebo: Maps | None,
        blocks: dict[Any, Block],
    ) -> None:
        slot = self.norms.target[tensor.name]
        theirs = next((n for n, s in self.norms.source.items() if s == slot and self._at(n) == m), None)
        if not slot or theirs is None:
            return
        found = [made for each in (maps, placebo) if each is not None and (made := _of_norm(each, slot)) is not None]
        if not found:
            return
        kept = [norm_offset(each.model_type) * slot.endswith(".weight") for _, each in self.facts.items()]
        scale = self.checkpoints.source.read(theirs).float() + kept[1]
        values = [each.write(scale) for each in found]
        own = self.checkpoints.target.read(tensor.name).float() + kept[0]
        self._add(blocks, tensor.name, "", "norms", own, None, weight, values, found[0].covered, -kept[0])

    def _at(self, name: str) -> int | None:
        return self.layouts.source.tensor(name).layer

    def _add(
        self, blocks: dict[Any, Block], name: str, kind: str, part: str, own: Tensor, projection: Projection | None,
        weight: float, values: list[Tensor], covered: Tensor, offset: float = 0.0,
    ) -> None:  # fmt: skip
        """Adds what one source layer gives: `values`, the placebo's at the norm of the first."""
        block = blocks.setdefault((name, kind), Block(name, part, own.float() + offset, projection))
        kept = own.to(values[0].device, torch.float32)
        for place, each in enumerate(_of_one_norm(values)):
            given = (torch.where(covered, each, kept) + offset).cpu() * weight
            if len(block.total) == place:
                block.total.append(given)
            else:
                block.total[place] += given
        block.weight.append(weight)

    def _joined(self, blocks: dict[Any, Block]) -> Iterator[Moved]:
        """The blocks of a tensor put together; what none of them holds stays the target's."""
        tensors: dict[str, list[Block]] = defaultdict(list)
        for block in blocks.values():
            rest = 1 - sum(block.weight)
            for place, total in enumerate(block.total):
                if rest > 1e-6:  # source layers that lack it
                    block.total[place] = total + rest * block.own
                _check(block.name, block.total[place])
            tensors[block.name].append(block)
        for name, mine in tensors.items():
            made = []
            for place in range(len(mine[0].total)):
                values = mine[0].total[place]
                if mine[0].projection is not None:
                    values = self.checkpoints.target.read(name).float()
                    for block in mine:
                        assert block.projection is not None
                        block.projection.put(values, block.total[place])
                made.append(values)
            yield Moved(name, mine[0].part, made[0], made[1] if len(made) > 1 else None)

    def _rows(
        self, tensor: StoredTensor, R: ChannelMap, placebo: Maps | None, tokens: Tensor, scale: float
    ) -> list[Moved]:
        """Rows of tokens and positions that both have."""
        spaces = [each[0].name for each in tensor.spaces]
        target, source = self.facts.target, self.facts.source
        theirs = counterpart(tensor, self.layouts.source, source.tied)
        if tensor.role == "head" and target.tied:
            return []
        if tensor.role == "position" and target.model_type == source.model_type and theirs is not None:
            both = torch.arange(min(tensor.shape[0], theirs.shape[0]))
            tokens = torch.stack([both, both], 1)
        elif tensor.role not in ("embedding", "head") or spaces[0] != "vocab" or theirs is None:
            return []
        if spaces[1:] not in ([], ["residual"]) or not len(tokens):
            return []
        given = self.checkpoints.source.read(theirs.name, rows=tokens[:, 1]).float()
        if tensor.role == "embedding" and not target.tied:
            given = given * scale
        if not spaces[1:]:
            return [self._moved_rows(tensor, tokens[:, 0], [given, *([given] if placebo else [])], None)]
        maps = [R, *([] if placebo is None else [placebo.R])]
        values = [each.read(given) if tensor.role == "head" else each.write(given.T).T for each in maps]
        return [self._moved_rows(tensor, tokens[:, 0], values, R.covered)]

    def _moved_rows(self, tensor: StoredTensor, rows: Tensor, values: list[Tensor], covered: Tensor | None) -> Moved:
        own = self.checkpoints.target.read(tensor.name, rows=rows).to(values[0].device, torch.float32)
        made = []
        for each in _of_one_norm(values):
            made.append((each if covered is None else torch.where(covered, each, own)).cpu().contiguous())
            _check(tensor.name, made[-1])
        index = None if len(rows) == tensor.shape[0] else rows
        return Moved(tensor.name, "embeddings", made[0], made[1] if len(made) > 1 else None, index)


def _carried(out: ChannelMap, W: Tensor, into: ChannelMap) -> Tensor:
    """Phi_out W Phi_in^T [d_out, d_in], the narrower side first."""
    if out.shape[0] * into.shape[1] < out.shape[1] * into.shape[0]:
        return into.read(out.write(W))
    return out.write(into.read(W))


def _of_one_norm(values: list[Tensor]) -> list[Tensor]:
    """The placebo's, after what is carried, at the norm of that."""
    norm = values[0].norm()
    return [values[0], *(each * (norm / each.norm().clamp_min(1e-30)) for each in values[1:])]


def _of_norm(maps: Maps, slot: str) -> ChannelMap | None:
    heads, space = maps.layer.heads, slot.split(":")[0]
    if space == "residual":
        return maps.R
    if heads is None:
        return None
    return {"head": heads.head, "heads.q": heads.q, "heads.kv": heads.k}[space]


def _check(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NumericsError(
            f"what was carried to {name} is not finite", "finite source weights", "check the source model"
        )


def _figures(p: Projection, block: Block) -> dict[str, Any]:
    moved, own = block.total[0], block.own
    norms = float(moved.norm()), float(own.norm())
    both = norms[0] * norms[1]
    return {
        "layer": p.layer,
        "kind": p.kind,
        "axis": "rows",
        "k": p.d_out,
        "transported_norm": norms[0],
        "target_norm": norms[1],
        "ratio": norms[0] / norms[1] if norms[1] else 0.0,
        "cosine": float((moved * own).sum()) / both if both else 0.0,
    }
