"""Plans that move whole heads (`transport.structure: heads`), and with `rotary` keep the pairs that positions turn.

The rules are those of ot_fusion's maps of attention (`ot_fusion.heads`): key-value heads are matched exactly, query
heads within the groups that are, q and k share one plan of their channels within a pair of heads, v and o another. A
cost is 1 - rho as everywhere (eq. 7), so that a layer pair's cost stays one of the layer plan. Plans are exact, hence
sparse: their entries are kept, in one piece for each target layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.engine.methods.ot_fusion.heads import HeadMaps, HeadSpaces, head_maps
from tmerge_tui.engine.optimal_transport.cost import correlation
from tmerge_tui.models.layout import Layout
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import ATTENTION, OtFusion, Transport
from tmerge_tui.run_folder import RunDir, key

SIDES = {"q": "q.out", "k": "k.out", "v": "v.out", "o": "o.in"}
ORDERS = {"o.in": "q.out", "v.out": "k.out"}  # sides whose source channels the placebo puts in the order of others
Attention = Pair[tuple[HeadSpaces | None, ...]]  # of every layer
EXACT = {"iterations": 0, "violation": 0.0, "max_violation": 0.0, "converged": True, "solver": "exact"}


@dataclass(frozen=True)
class HeadPlans:
    run: RunDir
    keys: Pair[str]  # of the activations
    spaces: Attention
    rotary: bool

    @classmethod
    def of(
        cls, run: RunDir, keys: Pair[str], layouts: Pair[Layout], kinds: Sequence[str], attention: Attention | None,
        options: Transport,
    ) -> tuple[HeadPlans | None, list[str]]:  # fmt: skip
        """(None where heads are not asked for or cannot be matched, what is to be said of that)."""
        if "heads" not in options.structure or attention is None:
            return None, []
        for role, layout in layouts.items():
            spaces = getattr(attention, role)
            for layer in range(layout.layers):
                there = [kind for kind in ATTENTION if kind in kinds and layout.get(layer, kind)]
                if not there:
                    continue
                told = ""
                if len(there) < len(ATTENTION):
                    told = f"of {', '.join(ATTENTION)} only {', '.join(there)} are aligned"
                elif spaces[layer] is None:
                    told = "its heads are not known"
                if told:
                    where = f"in layer {layer} of the {role} {told}"
                    return None, [f"structure: heads does not apply, plans are solved side by side: {where}"]
        rotary = "rotary" in options.structure
        if not rotary:
            attention = attention.each(lambda each: tuple(s and replace(s, turned=None) for s in each))
        return cls(run, keys, attention, rotary), []

    def piece(self, l: int, sources: Sequence[int]) -> Path:
        return self.run.piece(
            "transport-heads", key("heads-1", self.keys.target, self.keys.source, l, sources, self.rotary)
        )

    def solve(
        self, l: int, sources: Sequence[int], zx: Callable[[int, str], Tensor], zy: Callable[[int, str], Tensor]
    ) -> dict[str, dict[int, dict[str, Any]]]:
        """Matches target layer l with every source layer and keeps the plans; side -> source layer -> scalars."""
        tensors: dict[str, Tensor] = {}
        pairs: dict[str, dict[int, dict[str, Any]]] = {side: {} for side in SIDES.values()}
        for m in sources:
            costs = {kind: 1 - correlation(zx(l, side).double(), zy(m, side).double()) for kind, side in SIDES.items()}
            ours, theirs = self.spaces.target[l], self.spaces.source[m]
            assert ours is not None and theirs is not None
            maps = head_maps(costs, Pair(target=ours, source=theirs), OtFusion())
            for kind, side in SIDES.items():
                Q = _plan(maps, kind)
                index = Q.nonzero()
                tensors |= {f"{side}.{m}.index": index, f"{side}.{m}.values": Q[index[:, 0], index[:, 1]].float()}
                tensors[f"{side}.{m}.shape"] = torch.tensor(Q.shape)
                pairs[side][m] = {"cost": float((costs[kind].cpu() * Q).sum()), **EXACT}
        self.run.save(self.piece(l, sources), tensors, {"pairs": pairs})
        return pairs

    def plan(self, l: int, sources: Sequence[int], side: str, m: int) -> Tensor:
        """Q [n, n'] fp32"""
        tensors, _ = self.run.load(self.piece(l, sources))
        index, values, shape = (tensors[f"{side}.{m}.{name}"] for name in ("index", "values", "shape"))
        Q = torch.zeros(*shape.tolist())
        Q[index[:, 0], index[:, 1]] = values
        return Q


def _plan(maps: HeadMaps, kind: str) -> Tensor:
    """fp64, summing to 1"""
    T: Tensor = getattr(maps, kind).T.cpu().double()
    return T / T.sum()
