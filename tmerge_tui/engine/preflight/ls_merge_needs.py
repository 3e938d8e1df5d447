"""What the autoencoder of `method: ls_merge` takes, and the refusal of a CPU that would be at it for days."""

from __future__ import annotations

import torch

from tmerge_tui.engine.methods.ls_merge.sizes import chunk_of, shape_of
from tmerge_tui.engine.methods.ls_merge.windows import SHARD
from tmerge_tui.engine.preflight.ot_fusion_needs import Needs
from tmerge_tui.engine.preflight.speed import timed
from tmerge_tui.engine.prepared import Estimate
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import count, duration
from tmerge_tui.recipe import Recipe

DAY = 86_400.0  # seconds that a CPU may take
QUICK = 1e14  # FLOP below which nobody need be asked how fast this machine is
STATE = 5  # times the weights: gradient, two moments, the best ones so far
SVD = 10  # FLOP for each product of a matrix' sides and its shorter one


def ls_merge_needs(recipe: Recipe, models: Pair[ModelFacts], told: int) -> Needs:
    """`told`: how often a text is told by decoded weights. Upper figures, as `estimate` has them."""
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
        memory=int(weights * STATE + held + activations),
        plans=weights * STATE,
        moved=4 * chunks.target * shape.latent * (1 + sources),
        flops=flops,
        touched=0.0,
        solves=passes * every / tokens,
    )


def too_slow(recipe: Recipe, needs: Estimate, models: Pair[ModelFacts], device: torch.device) -> list[str]:
    """The problem of an autoencoder that this CPU would train for more than a day, with the estimate in it."""
    work = needs.work.get("autoencoder", 0.0)
    if device.type != "cpu" or work < QUICK:
        return []
    batch = recipe.ls_merge.batch_size * recipe.ls_merge.window
    alone = Estimate(0, 0, work, (), {"autoencoder": work}, steps={"batches": needs.steps["pairs"]})
    seconds = timed(alone, models.source, models.target, batch, device).seconds or 0.0
    if seconds < DAY:
        return []
    shape = shape_of(recipe.ls_merge, models.target.parameters, len(recipe.ls_merge.projections))
    passes = recipe.ls_merge.epochs + recipe.ls_merge.kl_epochs
    c = chunk_of(recipe.ls_merge, models.target.parameters)
    return [
        f"ls_merge: training the autoencoder takes about {duration(seconds)} on this CPU ({work / 1e12:,.0f} TFLOP: "
        f"{count(shape.parameters)} parameters, {passes:g} passes over the chunks of {c} numbers), expected less "
        "than a day; use a GPU, fewer ls_merge.epochs and kl_epochs, a smaller width, or fewer ls_merge.projections"
    ]


def _numbers(facts: ModelFacts, kinds: tuple[str, ...]) -> int:
    return sum(p.d_out * p.d_in for p in facts.layout.projections if p.kind in kinds)
