"""What the plans and products of `method: ot_fusion` take."""

from __future__ import annotations

from tmerge_tui.engine.methods.method import Needs
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import PROJECTIONS, Recipe

# Passes over a cost matrix of a thousand channels in all, growing with the square root of their number: what a network
# simplex takes is known only when it ends, and this is the order of it
EXACT = 1000
ENTROPIC = 30
ARC = 64  # bytes of a cost, an entry of the plan and an arc of the simplex
STREAMS = 2  # what a layer adds to the residual stream: attention and feed-forward


def needs(recipe: Recipe, models: Pair[ModelFacts], rows: int) -> Needs:
    """`rows` of activations; upper figures, as `estimate` has them."""
    target, source, options = models.target, models.source, recipe.ot_fusion
    passes = 1 + ("permuted" in recipe.evaluation.controls)
    layers = target.layers * (recipe.transport.top_layers if options.depth == "plan" else 1)
    n, m = ((_width(facts, "down.in"), facts.heads * facts.head_dim) for facts in (target, source))
    stream, neurons, heads = target.hidden * source.hidden, n[0] * m[0], n[1] * m[1]
    streams = 0 if options.residual == "identity" else 1 + STREAMS * target.layers
    solves = streams if options.residual == "mean" else 1
    compared = rows if options.cost == "activations" else max(target.hidden, source.hidden)
    again = 2 if options.cost == "weights" and options.residual != "identity" else 1  # layers, for the first map's sake
    flops = 2.0 * compared * (streams * stream + again * layers * (3 * neurons + 4 * heads))
    flops += passes * layers * sum(_product(models, kind) for kind in ("q", "k", "v", "o", "gate", "up", "down"))
    if options.depth == "plan":
        flops += 4.0 * rows * target.layers * source.layers * stream
    largest = max(stream, neurons)
    arc = 24 if options.solver == "sinkhorn" else ARC
    biggest = max(target.parameters / target.layers, target.rows * target.hidden)
    biggest += max(source.parameters / source.layers, source.rows * source.hidden)
    return Needs(
        work="transport",
        kinds=PROJECTIONS if options.cost == "activations" else (),
        memory=int(arc * largest + 4 * (1 + passes) * biggest),
        plans=8 * stream,
        moved=4 * passes * target.parameters,
        flops=flops,
        touched=solves * _sweeps(recipe, target.hidden, source.hidden) + again * layers * _sweeps(recipe, n[0], m[0]),
        solves=float(solves + again * layers * (1 + 4 * target.kv_heads * source.kv_heads)),
    )


def _sweeps(recipe: Recipe, n: int, m: int) -> float:
    """Bytes that one solve of [n, m] in fp64 goes through."""
    if recipe.ot_fusion.solver == "sinkhorn":
        return 8.0 * ENTROPIC * n * m
    return 8.0 * EXACT * n * m * ((n + m) / 1000) ** 0.5


def _width(facts: ModelFacts, side: str) -> int:
    return max((facts.layout.width(layer, side) or 0 for layer in range(facts.layers)), default=0)


def _product(models: Pair[ModelFacts], kind: str) -> float:
    """FLOP of Phi_out W Phi_in^T for a projection of one layer, by dense maps."""
    ours, theirs = (next((p for p in f.layout.projections if p.kind == kind), None) for _, f in models.items())
    if ours is None or theirs is None:
        return 0.0
    return 2.0 * theirs.d_in * ours.d_out * (theirs.d_out + ours.d_in)
