"""What a run will need, from the recipe and both models' shapes, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmerge_tui.engine.prepared import Estimate
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.layout import SIDES
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import size
from tmerge_tui.recipe import Recipe

RUNTIME = 1 << 30  # bytes of Python, torch and transformers, and what they cache
WORKSPACE = 256 << 20  # bytes: a chunk of pooled activations, a stretch of logits, a batch of kernels
WORDS_PER_TOKEN = 0.7  # of text in an alphabet, at most
SWEEPS = 15  # passes over a kernel in an accelerated solve (10 to 60)


@dataclass(frozen=True)
class _Problem:
    """One side of one layer pair."""

    side: str
    l: int
    n: int
    n_source: int


def estimate(recipe: Recipe, models: Pair[ModelFacts], read: tuple[int, int] | None = None) -> Estimate:
    """An upper figure: every sample asked for, `max_length` tokens each; closer when it is known what the tokenizers
    `read`: (rows, tokens) of the calibration text."""
    target, source = models.target, models.source
    rows, tokens = read or _most(recipe)
    kinds = recipe.transport.projections
    pairs = _pairs(models, kinds)
    forward = max(_forward(recipe, facts) for facts in (target, source))
    transport = _transport(pairs, rows) + 4 * (_largest(target) + _largest(source))
    training, kept = _training(recipe, models, kinds)
    memory = RUNTIME + WORKSPACE + max(forward, transport, training)

    state = _pooled(target, kinds, rows) + _pooled(source, kinds, rows)
    duals = sum(4 * (pair.n + pair.n_source) for pair in pairs)
    fused = sum(4 * _moved(recipe, p.kind, p.d_out, p.d_in) for p in target.layout.projections if p.kind in kinds)
    count = len(recipe.fusion.alpha)
    merged = target.bytes_on_disk * count
    disk = state + duals + fused + merged + kept

    reading = 2.0 * tokens * (target.parameters + source.parameters)
    measured = tokens / max(recipe.calibration.samples, 1) * recipe.calibration.holdout
    passes = 1 + count * (1 + len(recipe.evaluation.controls))
    measuring = 2.0 * measured * (target.parameters * passes + source.parameters * recipe.evaluation.source)
    rebuilt = 1 + min(1.0, recipe.transport.top_layers / source.layers)
    plans = sum((2.0 * rows * rebuilt + 4.0 * SWEEPS) * pair.n * pair.n_source for pair in pairs)
    return Estimate(
        memory,
        disk,
        reading + measuring + plans,
        (
            f"{rows:,} rows of pooled activations from {tokens:,} tokens" + (" at most" if read is None else ""),
            f"memory {size(memory)}: the larger of a forward pass {size(forward)} and transport "
            f"{size(transport)}"
            + (f" and training {size(training)}" if training else "")
            + f", plus {size(RUNTIME + WORKSPACE)} for the program; one model at a time",
            f"disk {size(disk)}: activations {size(state)}, plans {size(duals)}, moved weights "
            f"{size(fused)}, merged models {size(merged)} ({count})" + (f", training {size(kept)}" if kept else ""),
            f"work {(reading + measuring + plans) / 1e12:,.1f} TFLOP: reading {reading / 1e12:,.1f}, "
            f"transport {plans / 1e12:,.1f}, measuring {measuring / 1e12:,.1f}",
        ),
    )


def _most(recipe: Recipe) -> tuple[int, int]:
    """(rows T, tokens) of the calibration text, at most."""
    calibration = recipe.calibration
    words = int(calibration.max_length * WORDS_PER_TOKEN) if calibration.pooling == "span" else 1
    return calibration.samples * words, calibration.samples * calibration.max_length


def _pairs(models: Pair[ModelFacts], kinds: Sequence[str]) -> list[_Problem]:
    """Every side of every layer pair that both models have."""
    target, source = models.target, models.source
    pairs = []
    for side in SIDES:
        widths = [source.layout.width(m, side) for m in range(source.layers) if side in source.layout.sides(m, kinds)]
        for layer in range(target.layers):
            n = target.layout.width(layer, side) if side in target.layout.sides(layer, kinds) else None
            if n is not None:
                pairs += [_Problem(side, layer, n, width) for width in widths if width is not None]
    return pairs


def _pooled(facts: ModelFacts, kinds: Sequence[str], rows: int) -> int:
    """Bytes of all pooled activations, T x widths of every layer in fp32."""
    places = [(layer, side) for layer in range(facts.layers) for side in facts.layout.sides(layer, kinds)]
    return 4 * rows * sum(facts.layout.width(layer, side) or 0 for layer, side in places)


def _forward(recipe: Recipe, facts: ModelFacts) -> int:
    """Weights (at 4 bytes unless the recipe asks for bfloat16; never more than its memory) and one batch passing."""
    size = 2 if recipe.dtype == "bfloat16" else 4
    weights = facts.parameters * size
    if recipe.memory_bytes is not None:
        weights = min(weights, recipe.memory_bytes)
    widest = max((max(p.d_out, p.d_in) for p in facts.layout.projections), default=facts.hidden)
    batch = max(recipe.calibration.batch_size, recipe.evaluation.batch_size) * recipe.calibration.max_length
    return weights + batch * (4 * facts.hidden + 3 * widest) * size


def _training(recipe: Recipe, models: Pair[ModelFacts], kinds: Sequence[str]) -> tuple[int, int]:
    """(memory, disk) of adaptation. Every trained parameter costs its weight, gradient and two moments in fp32, and in
    a checkpoint three of them; the teacher is in memory beside. On disk stay the trained tensors of every training, one
    checkpoint, hints in fp16 and the model."""
    options, target = recipe.adaptation, models.target
    if options is None:
        return 0, 0
    full = options.method == "full"
    trained = target.parameters if full else sum(p.d_out * p.d_in for p in target.layout.projections)
    logits = 3 * 4 * options.batch_size * options.block_length * target.vocab
    memory = 4 * target.parameters + (12 * trained if full else 0) + logits
    if "distill" in options.compare:
        memory += 4 * models.source.parameters
    disk = 4 * trained * options.trainings + 12 * trained + target.bytes_on_disk
    if options.hints is not None:
        widths = sum(
            target.layout.width(layer, side) or 0
            for layer in range(target.layers)
            for side in options.hints.sides
            if side in target.layout.sides(layer, kinds)
        )
        disk += 2 * (1 + options.hints.permuted_control) * options.samples * options.hints.words * widths
    return memory, disk


def _transport(pairs: Sequence[_Problem], rows: int) -> int:
    """One target layer's z-scores with those of all source layers, on the widest side, and one kernel with its plan."""
    sides: dict[tuple[str, int], int] = {}
    for pair in pairs:
        place = (pair.side, pair.l)
        sides[place] = sides.get(place, pair.n) + pair.n_source
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
