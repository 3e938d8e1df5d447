"""What a run will need, from the recipe and both models' shapes, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmerge_tui.engine.methods.transport_merge.structure import groups
from tmerge_tui.engine.preflight.ot_fusion_needs import ot_fusion_needs
from tmerge_tui.engine.preflight.written_needs import written_needs
from tmerge_tui.engine.prepared import Estimate
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.layout import SIDES
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import size
from tmerge_tui.recipe import PROJECTIONS, Recipe, Transport

RUNTIME = 1 << 30  # bytes of Python, torch and transformers, and what they cache
WORKSPACE = 256 << 20  # bytes: a chunk of pooled activations, a stretch of logits, a batch of kernels
WORDS_PER_TOKEN = 0.7  # of text in an alphabet, at most
SWEEPS = 15  # passes over a kernel in an accelerated solve (10 to 60)
QUESTIONS, ANSWERS, QUESTION_TOKENS = 2_000, 4, 60  # of a usual task of lm-evaluation-harness
RATES, WEIGHTS, SEARCH_STEPS = 5, 3, 60  # trainings that choose learning_rate and distill_weight, steps of each
SEARCHES = 30  # times that alpha: auto reads the validation text, for seven kinds of projections


@dataclass(frozen=True)
class _Problem:
    """One side of one layer pair."""

    side: str
    l: int
    n: int
    n_source: int
    stack: int = 1  # sides that one plan serves


def estimate(
    recipe: Recipe,
    models: Pair[ModelFacts],
    read: tuple[int, int] | None = None,
    texts: int | None = None,
) -> Estimate:
    """What the whole run takes, training, benchmarks and prompts included.

    An upper figure: every sample asked for, `max_length` tokens each; closer when it is known what the tokenizers
    `read`: (rows, tokens) of so many calibration `texts`.
    """
    target, source = models.target, models.source
    rows, tokens = read or _most(recipe)
    own = ot_fusion_needs(recipe, models, rows) if recipe.method == "ot_fusion" else None
    reads = own is None or recipe.ot_fusion.cost == "activations"
    kinds = recipe.transport.projections if own is None else PROJECTIONS if reads else ()
    pairs = _pairs(models, kinds, recipe.transport) if own is None else []
    weights = max(_weights(recipe, facts) for facts in (target, source))
    forward = max(_forward(recipe, facts) for facts in (target, source))
    transport = own.memory if own else _transport(pairs, rows) + 4 * (_largest(target) + _largest(source))
    training, teacher, kept = _training(recipe, models, kinds)
    memory = RUNTIME + WORKSPACE + max(forward, transport, training + teacher)

    state = _pooled(target, kinds, rows) + _pooled(source, kinds, rows)
    duals = own.plans if own else sum(4 * (pair.n + pair.n_source) for pair in pairs)
    carried = (4 * _moved(recipe, p.kind, p.d_out, p.d_in) for p in target.layout.projections if p.kind in kinds)
    fused = own.moved if own else sum(carried)
    count = len(recipe.fusion.alpha)
    merged = target.bytes_on_disk * count

    count_of_texts = recipe.calibration.samples if texts is None else min(texts, recipe.calibration.samples)
    each = tokens / max(count_of_texts, 1)
    events = events_kept(recipe, each, count_of_texts, target)
    written = written_needs(recipe, models, each)
    disk = state + duals + fused + merged + kept + events + written.disk
    rebuilt = 1 + min(1.0, recipe.transport.top_layers / source.layers)
    passes = _passes(recipe)
    asked = _asked(recipe)
    trained = recipe.adaptation.trainings if recipe.adaptation else 0
    answering = count + 1 + bool(recipe.adaptation)  # models that answer: results, the target, the trained one
    said = len(recipe.evaluation.prompts) * recipe.evaluation.max_new_tokens
    held = each * recipe.calibration.holdout
    searched = SEARCHES * each * recipe.calibration.validation if recipe.fusion.searched else 0.0
    learned = tokens_learned(recipe, each, count_of_texts)
    patient = recipe.adaptation is not None and recipe.adaptation.patient
    work = {
        "reading": 2.0 * tokens * (target.parameters + source.parameters) * reads,
        "transport": own.flops
        if own
        else sum(2.0 * rows * rebuilt * pair.stack * pair.n * pair.n_source for pair in pairs),
        "measuring": 2.0
        * held
        * (target.parameters * (passes + trained) + source.parameters * recipe.evaluation.source)
        + 2.0 * searched * target.parameters,
        "training": _learning(recipe, learned, each, target, written.learned),
        "writing": written.writing,
        "teaching": _teaching(recipe, learned, source),
        "benchmarks": 2.0
        * asked
        * (target.parameters * answering + source.parameters * recipe.evaluation.benchmark_source),
        "prompts": 2.0 * said * target.parameters * answering,
    }
    batches = (
        2 * count_of_texts * reads + recipe.calibration.holdout * (passes + trained + recipe.evaluation.source)
    ) / max(recipe.calibration.batch_size, 1)
    steps = {
        "batches": batches + said * answering + learned / max(each, 1.0) + written.passes,
        "pairs": own.solves if own else float(len(pairs)),
        "loads": 2.0 + passes / 2 + 2 * trained,
    }
    told = ", ".join(f"{name} {flops / 1e12:,.1f}" for name, flops in work.items() if flops)
    return Estimate(
        memory,
        disk,
        sum(work.values()),
        (
            f"{rows:,} rows of pooled activations from {tokens:,} tokens" + (" at most" if read is None else "")
            if reads
            else "weights are compared with weights: no text is read for the plans",
            f"memory {size(memory)}: the larger of a forward pass {size(forward)} and transport "
            f"{size(transport)}"
            + (f" and training {size(training + teacher)}" if training else "")
            + f", plus {size(RUNTIME + WORKSPACE)} for the program; one model at a time",
            f"disk {size(disk)}: activations {size(state)}, plans {size(duals)}, moved weights "
            f"{size(fused)}, merged models {size(merged)} ({count})"
            + (f", training {size(kept)}" if kept else "")
            + (f", what teachers say {size(events)} at most" if events else ""),
            f"work {sum(work.values()) / 1e12:,.1f} TFLOP: {told}",
            *([_passes_at_most(recipe, learned)] if patient else []),
            *([written.note] if written.texts else []),
        ),
        work,
        own.touched if own else sum(4.0 * 2 * SWEEPS * pair.n * pair.n_source for pair in pairs),
        steps,
        {"weights": weights, "transport": transport, "training": training, "teacher": teacher},
        read is None or patient,
    )


def _passes(recipe: Recipe) -> int:
    """Times the hold-out is read by a model of the target's size: the target, results, and placebos of each."""
    return 1 + len(recipe.fusion.alpha) * (1 + len(recipe.evaluation.controls))


def _asked(recipe: Recipe) -> float:
    """Tokens of all questions and answers; of a task that is not here, as many as the usual one has."""
    evaluation = recipe.evaluation
    questions = sum(_lines(choices.path) for choices in evaluation.choices)
    questions += len(evaluation.tasks) * min(evaluation.limit or QUESTIONS, QUESTIONS)
    return float(questions * ANSWERS * QUESTION_TOKENS)


def _lines(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return 0  # the check says that it is not there


def tokens_learned(recipe: Recipe, each: float, read: int) -> float:
    """Tokens that one training goes through, at most with epochs: auto; `each` and `read` are of the calibration
    text."""
    options = recipe.adaptation
    if options is None:
        return 0.0
    longest = max(each, 1.0) if options.packing == "pack" else min(max(each, 1.0), options.block_length)
    if options.max_steps is not None:
        row = options.block_length if options.packing == "pack" else longest
        return float(options.max_steps * options.batch_size * options.accumulation * row)
    samples = options.samples if options.path is not None else min(options.samples, read)
    return options.passes * samples * longest


def events_kept(recipe: Recipe, each: float, read: int, target: ModelFacts) -> int:
    """Bytes of the teacher cache and those of placebos that need one, at most (sizes: `training.event_cache`)."""
    options = recipe.adaptation
    if options is None or not options.distilled:
        return 0
    samples = options.samples if options.path is not None else min(options.samples, read)
    caches = 1 + len({"self", "untuned"} & set(options.controls))
    event = 4 if target.vocab <= 1 << 16 else 6
    return int(caches * samples * each * (12 + event * options.teaching.events))


def _passes_at_most(recipe: Recipe, learned: float) -> str:
    assert recipe.adaptation is not None
    return (
        f"training at most {recipe.adaptation.passes:g} passes for each of {recipe.adaptation.trainings} trainings, "
        f"{learned:,.0f} tokens; it ends when validation text gains no more"
    )


def tokens_searched(recipe: Recipe, learned: float, each: float) -> float:
    """Tokens of the short trainings that choose what is `auto`."""
    options = recipe.adaptation
    if options is None or not options.searched:
        return 0.0
    trials = RATES * ("learning_rate" in options.searched) + WEIGHTS * ("distill_weight" in options.searched)
    row = options.block_length if options.packing == "pack" else min(max(each, 1.0), options.block_length)
    return trials * min(learned, SEARCH_STEPS * options.batch_size * options.accumulation * row)


def _learning(recipe: Recipe, learned: float, each: float, target: ModelFacts, written: float) -> float:
    """Forward and backward of every training of the target, of those that choose options, and on `written` tokens."""
    options = recipe.adaptation
    if options is None:
        return 0.0
    flops = 6.0 + 2.0 * options.gradient_checkpointing - 2.0 * (options.method == "lora")
    return flops * target.parameters * (learned * options.trainings + tokens_searched(recipe, learned, each) + written)


def _teaching(recipe: Recipe, learned: float, source: ModelFacts) -> float:
    """The source learns, where it is tuned, and then reads a text once: what it says is kept."""
    options = recipe.adaptation
    if options is None:
        return 0.0
    taught = options.distilled + (options.hints is not None)
    tuned = 6.0 * options.tuned * options.teaching.tune_epochs / options.passes
    return learned * (2.0 * taught / options.passes + tuned) * source.parameters


def _most(recipe: Recipe) -> tuple[int, int]:
    """(rows T, tokens) of the calibration text, at most."""
    calibration = recipe.calibration
    words = int(calibration.max_length * WORDS_PER_TOKEN) if calibration.pooling == "span" else 1
    return calibration.samples * words, calibration.samples * calibration.max_length


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


def _pooled(facts: ModelFacts, kinds: Sequence[str], rows: int) -> int:
    """Bytes of all pooled activations, T x widths of every layer in fp32."""
    places = [(layer, side) for layer in range(facts.layers) for side in facts.layout.sides(layer, kinds)]
    return 4 * rows * sum(facts.layout.width(layer, side) or 0 for layer, side in places)


def _weights(recipe: Recipe, facts: ModelFacts) -> int:
    """At 4 bytes unless the recipe asks for bfloat16; never more than its memory."""
    weights = facts.parameters * (2 if recipe.dtype == "bfloat16" else 4)
    return weights if recipe.memory_bytes is None else min(weights, recipe.memory_bytes)


def _forward(recipe: Recipe, facts: ModelFacts) -> int:
    """Weights and one batch passing."""
    size = 2 if recipe.dtype == "bfloat16" else 4
    weights = _weights(recipe, facts)
    widest = max((max(p.d_out, p.d_in) for p in facts.layout.projections), default=facts.hidden)
    batch = max(recipe.calibration.batch_size, recipe.evaluation.batch_size) * recipe.calibration.max_length
    return weights + batch * (4 * facts.hidden + 3 * widest) * size


def _training(recipe: Recipe, models: Pair[ModelFacts], kinds: Sequence[str]) -> tuple[int, int, int]:
    """(memory, that of a teacher beside it, disk) of adaptation.

    Every trained parameter costs its weight, gradient and two moments in fp32, and in a checkpoint three of them. On
    disk stay the trained tensors of every training, one checkpoint, hints in fp16 and the model.
    """
    options, target, source = recipe.adaptation, models.target, models.source
    if options is None:
        return 0, 0, 0
    full = options.method == "full"
    trained = target.parameters if full else sum(p.d_out * p.d_in for p in target.layout.projections)
    logits = 3 * 4 * options.batch_size * options.block_length * target.vocab
    memory = 4 * target.parameters + (12 * trained if full else 0) + logits
    teacher = 4 * source.parameters if options.distilled else 0
    checkpoints = 3 if options.patient else 1  # the last, the best, that of the falling rate
    disk = 4 * trained * options.trainings + 12 * trained * checkpoints + target.bytes_on_disk
    if options.tuned:  # first the source is trained, alone: by low-rank updates unless every weight is asked for
        every = options.teaching.tune == "full"
        memory = max(memory, (16 if every else 4) * source.parameters - teacher)
        disk += (16 if every else 4) * source.parameters
    if options.hints is not None:
        widths = sum(
            target.layout.width(layer, side) or 0
            for layer in range(target.layers)
            for side in options.hints.sides
            if side in target.layout.sides(layer, kinds)
        )
        disk += 2 * (1 + options.hints.permuted_control) * options.samples * options.hints.words * widths
    return memory, teacher, disk


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
