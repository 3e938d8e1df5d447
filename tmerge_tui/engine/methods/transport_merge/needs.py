"""What the plans of `method: transport_merge` take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmerge_tui.engine.methods.method import Needs
from tmerge_tui.engine.methods.transport_merge.structure import groups
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.layout import SIDES
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe, Transport

SWEEPS = 15  # passes over a kernel in an accelerated solve (10 to 60)


@dataclass(frozen=True)
class _Problem:
    """One side of one layer pair."""

    side: str
    l: int
    n: int
    n_source: int
    stack: int = 1  # sides that one plan serves


def needs(recipe: Recipe, models: Pair[ModelFacts], rows: int) -> Needs:
    """`rows` of activations; upper figures, as `estimate` has them."""
    target, source = models.target, models.source
    kinds = recipe.transport.projections
    pairs = _pairs(models, kinds, recipe.transport)
    rebuilt = 1 + min(1.0, recipe.transport.top_layers / source.layers)
    carried = (4 * _moved(recipe, p.kind, p.d_out, p.d_in) for p in target.layout.projections if p.kind in kinds)
    return Needs(
        work="transport",
        kinds=kinds,
        memory=_transport(pairs, rows)
        + 4 * (_largest(target) + _largest(source) * (1 + (recipe.fusion.reference is not None))),
        plans=sum(4 * (pair.n + pair.n_source) for pair in pairs),
        moved=sum(carried),
        flops=sum(2.0 * rows * rebuilt * pair.stack * pair.n * pair.n_source for pair in pairs),
        touched=sum(4.0 * 2 * SWEEPS * pair.n * pair.n_source for pair in pairs),
        solves=len(pairs) + _heads(recipe, models),
    )


def _heads(recipe: Recipe, models: Pair[ModelFacts]) -> float:
    """Small exact plans where whole heads are matched: of channels in each pair of heads, then of heads."""
    if "heads" not in recipe.transport.structure:
        return 0.0
    target, source = models.target, models.source
    return float(target.layers * source.layers * (2 * target.kv_heads * source.kv_heads + 2))


def _pairs(models: Pair[ModelFacts], kinds: Sequence[str], options: Transport) -> list[_Problem]:
    """Every side of every layer pair that both models have; sides under one plan are one problem of all their rows."""
    target, source = models.target, models.source
    shared, _ = groups(models.each(lambda model: model.layout), kinds, options)
    stack = {side: len(group) if side == group[0] else 0 for group in shared for side in group}
    pairs = []
    for side in (side for side in SIDES if stack.get(side, 1)):
        widths = [source.layout.width(m, side) for m in range(source.layers) if side in source.layout.sides(m, kinds)]
        for layer in range(target.layers):
            n = target.layout.width(layer, side) if side in target.layout.sides(layer, kinds) else None
            if n is not None:
                pairs += [_Problem(side, layer, n, width, stack.get(side, 1)) for width in widths if width is not None]
    return pairs


def _transport(pairs: Sequence[_Problem], rows: int) -> int:
    """One target layer's z-scores with those of all source layers, on the widest side, and one kernel with its plan."""
    sides: dict[tuple[str, int], int] = {}
    for pair in pairs:
        place = (pair.side, pair.l)
        sides[place] = sides.get(place, pair.stack * pair.n) + pair.stack * pair.n_source
    scores = 4 * rows * max(sides.values(), default=0)
    return scores + max((2 * 4 * pair.n * pair.n_source for pair in pairs), default=0)


def _largest(facts: ModelFacts) -> int:
    """Entries of the largest weight that may be fused."""
    return max((p.d_out * p.d_in for p in facts.layout.projections), default=0)


def _moved(recipe: Recipe, kind: str, d_out: int, d_in: int) -> int:
    """Entries of the transported rows (columns of o and down) of one projection."""
    count, length = (d_in, d_out) if kind in ("o", "down") else (d_out, d_in)
    k = count if recipe.fusion.k == "all" else min(recipe.fusion.k, count)
    return k * length
