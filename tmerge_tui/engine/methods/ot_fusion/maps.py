"""The maps of a pair of models: one of the residual stream for all layers, of heads and neurons one a layer pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tmerge_tui.engine.methods.ot_fusion.channel_map import ChannelMap
from tmerge_tui.engine.methods.ot_fusion.coupling import Coupling, couple, marginal
from tmerge_tui.engine.methods.ot_fusion.ground import Compared, Ground, LayerMaps
from tmerge_tui.engine.methods.ot_fusion.heads import KINDS, HeadSpaces, head_maps
from tmerge_tui.models.layout import Layout
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import OtFusion


@dataclass(frozen=True)
class Matcher:
    ground: Ground
    layouts: Pair[Layout]
    attention: Pair[tuple[HeadSpaces | None, ...]]  # of every layer
    options: OtFusion
    device: torch.device
    unconverged: list[str]  # names of plans that Sinkhorn left early

    def residual(self, widths: Pair[int], P: Tensor, advance: Callable[[], None]) -> tuple[ChannelMap, float | None]:
        """(the map [d, d'], its cost), by `options.residual`; `advance` is called after each target layer.

        joint: one plan for the mean cost of all that is added to the stream. mean: the mean of a plan each. identity:
        channel i is channel i, as far as both have it. Costs of weights need a first map, that of the embeddings.
        """
        if self.options.residual == "identity":
            for _ in range(len(P)):
                advance()
            return ChannelMap(torch.eye(widths.target, widths.source, dtype=torch.float64).to(self.device)), None
        stream = self.ground.stream()
        first = ChannelMap(self._couple(stream, "residual").T.to(self.device)) if self.ground.needs_map else None
        total = _Sum()
        for each in self._added(stream, P, first, advance):
            total.add(each if self.options.residual == "joint" else self._as_plan(each))
        mean = total.mean()
        if self.options.residual == "joint":
            found = self._couple(mean, "residual")
            return ChannelMap(found.T.to(self.device)), found.cost
        return ChannelMap(mean.C), None

    def layer(self, l: int, m: int, R: ChannelMap) -> LayerMaps:
        """Heads and neurons of target layer l and source layer m."""
        ours, theirs = set(self.layouts.target.kinds(l)), set(self.layouts.source.kinds(m))
        both, heads, neurons, cost = ours & theirs, None, None, None
        spaces = self.attention.target[l], self.attention.source[m]
        if both.issuperset(KINDS) and spaces[0] is not None and spaces[1] is not None:
            costs, strength = self.ground.heads(l, m, R)
            weighed = strength if self.options.marginals == "importance" else None
            both_spaces = Pair(target=spaces[0], source=spaces[1])
            heads = head_maps(costs, both_spaces, self.options, weighed).to(self.device)
        if both.issuperset(("up", "down")):
            found = self._couple(self.ground.neurons(l, m, R), f"neurons {l}, {m}")
            neurons, cost = ChannelMap(found.T.to(self.device)), found.cost
        return LayerMaps(heads, neurons, cost)

    def _added(
        self, stream: Compared, P: Tensor, first: ChannelMap | None, advance: Callable[[], None]
    ) -> Iterator[Compared]:
        yield stream
        for l, row in enumerate(P):
            if float(row.max()) > 0:
                yield from self.ground.added(l, int(row.argmax()), first, self.layer)
            advance()

    def _couple(self, compared: Compared, name: str) -> Coupling:
        masses: Pair[Tensor | None] = Pair(target=None, source=None)
        if self.options.marginals == "importance":
            masses = compared.strength.each(marginal)
        found = couple(compared.C, self.options, masses.target, masses.source)
        if not found.converged:
            self.unconverged.append(name)
        return found

    def _as_plan(self, compared: Compared) -> Compared:
        return Compared(self._couple(compared, "residual").T.to(self.device), compared.strength)


class _Sum:
    """Costs or plans, and strengths as shares of their sums."""

    def __init__(self) -> None:
        self.C: Tensor | None = None
        self.strengths: list[Tensor] = []
        self.count = 0

    def add(self, each: Compared) -> None:
        shares = [strength.double() / strength.double().sum().clamp_min(1e-30) for _, strength in each.strength.items()]
        if self.C is None:
            self.C, self.strengths = each.C.double(), shares
        else:
            self.C = self.C + each.C
            self.strengths = [a + b for a, b in zip(self.strengths, shares, strict=True)]
        self.count += 1

    def mean(self) -> Compared:
        assert self.C is not None
        return Compared(self.C / self.count, Pair(target=self.strengths[0], source=self.strengths[1]))
