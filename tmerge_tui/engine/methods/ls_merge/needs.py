"""What the autoencoder of `method: ls_merge` takes, and the refusal of a CPU that would be at it for days."""

from __future__ import annotations

from tmerge_tui.engine.methods.ls_merge.sizes import chunk_of, shape_of
from tmerge_tui.engine.methods.ls_merge.windows import SHARD
from tmerge_tui.engine.methods.method import Needs
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import count, duration
from tmerge_tui.recipe import Recipe

DAY = 86_400.0  # seconds that a CPU may take
STATE = 5  # times the weights: gradient, two moments, the best ones so far
SVD = 10  # FLOP for each product of a matrix' sides and its shorter one


def needs(recipe: Recipe, models: Pair[ModelFacts], told: int) -> Needs:
    """`told`: how often a text is told by decoded weights."""
    options, target = recipe.ls_merge, models.target
    shape = shape_of(options, target.parameters, len(options.projections))
    numbers = models.each(lambda facts: _numbers(facts, options.projections))
    chunks = numbers.each(lambda count: -(-count // shape.c))
    every = chunks.target + chunks.source
    passes = options.epochs + options.kl_epochs
    tokens = options.batch_size * options.window
    attention = 8.0 * shape.blocks * options.window * shape.width  # both matrices of scores, encoder and decoder
    token = 2.0 * shape.parameters + attention
    moments = 2 * options.checkpoints
    sources = 1 + len({"random_source", "permuted_chunks"} & set(options.controls))
    sides = [(p.d_out, p.d_in) for p in target.layout.projections if p.kind in options.projections]
    truncated = (
        SVD * sum(min(s) ** 2 * max(s) for s in sides) * ("truncated" in options.controls) * len(recipe.fusion.alpha)
    )
    flops = 3 * token * passes * every + token * chunks.target * (moments + told) + token * every * sources + truncated
    weights = 4 * shape.parameters
    held = min(SHARD, 4 * (numbers.target + numbers.source))
    activations = 4 * tokens * shape.width * 2 * shape.blocks * 24  # kept for the way back
    return Needs(
        work="autoencoder",
        kinds=(),
        memory=int(weights * STATE + held + activations),
        plans=weights * STATE,
        moved=4 * chunks.target * shape.latent * (1 + sources),
        flops=flops,
        touched=0.0,
        solves=passes * every / tokens,
    )


def too_slow(recipe: Recipe, models: Pair[ModelFacts], seconds: float) -> str | None:
    """The problem of an autoencoder that this CPU would train for more than a day, with the estimate in it."""
    if seconds < DAY:
        return None
    options = recipe.ls_merge
    shape = shape_of(options, models.target.parameters, len(options.projections))
    passes = options.epochs + options.kl_epochs
    c = chunk_of(options, models.target.parameters)
    return (
        f"ls_merge: training the autoencoder takes about {duration(seconds)} on this CPU "
        f"({count(shape.parameters)} parameters, {passes:g} passes over the chunks of {c} numbers), expected less than "
        "a day; use a GPU, fewer ls_merge.epochs and kl_epochs, a smaller width, or fewer ls_merge.projections"
    )


def _numbers(facts: ModelFacts, kinds: tuple[str, ...]) -> int:
    return sum(p.d_out * p.d_in for p in facts.layout.projections if p.kind in kinds)
