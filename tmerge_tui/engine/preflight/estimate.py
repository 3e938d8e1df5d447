"""What a run will need, from the recipe and both models' shapes, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from tmerge_tui.engine.methods.registry import METHODS, strength_is_chosen
from tmerge_tui.engine.preflight.besides_needs import besides_needs
from tmerge_tui.engine.preflight.safety_needs import safety_needs
from tmerge_tui.engine.preflight.written_needs import written_needs
from tmerge_tui.engine.prepared import Estimate, Party
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import size
from tmerge_tui.recipe import Recipe
from tmerge_tui.recipe.adaptation import Adaptation

RUNTIME = 1 << 30  # bytes of Python, torch and transformers, and what they cache
WORKSPACE = 256 << 20  # bytes: a chunk of pooled activations, a stretch of logits, a batch of kernels
WORDS_PER_TOKEN = 0.7  # of text in an alphabet, at most
QUESTIONS, ANSWERS, QUESTION_TOKENS = 2_000, 4, 60  # of a usual task of lm-evaluation-harness
RATES, WEIGHTS, SEARCH_STEPS = 5, 3, 60  # trainings that choose learning_rate and distill_weight, steps of each
SEARCHES = 30  # times that alpha: auto reads the validation text, for seven kinds of projections


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
    passes = _passes(recipe)
    told = passes + (SEARCHES if recipe.fusion.searched else 0)
    own = METHODS[recipe.method].needs(recipe, models, rows, told)
    kinds, reads = own.kinds, bool(own.kinds)
    weights = max(_weights(recipe, facts) for facts in (target, source))
    forward = max(_forward(recipe, facts) for facts in (target, source))
    training, teacher, kept = _training(recipe, models, kinds)
    memory = RUNTIME + WORKSPACE + max(forward, own.memory, training + teacher)

    state = _pooled(target, kinds, rows) + _pooled(source, kinds, rows)
    count = len(recipe.fusion.alpha)
    merged = target.bytes_on_disk * count

    count_of_texts = recipe.calibration.samples if texts is None else min(texts, recipe.calibration.samples)
    each = tokens / max(count_of_texts, 1)
    events = events_kept(recipe, each, count_of_texts, target)
    written = written_needs(recipe, models, each)
    disk = state + own.plans + own.moved + merged + kept + events + written.disk
    asked = _asked(recipe)
    trained = recipe.adaptation.trainings if recipe.adaptation else 0
    answering = count + 1 + bool(recipe.adaptation)  # models that answer: results, the target, the trained one
    said = len(recipe.evaluation.prompts) * recipe.evaluation.max_new_tokens
    screened = safety_needs(recipe, models, passes + bool(recipe.adaptation))
    held = each * recipe.calibration.holdout
    searched = _weighed(recipe) * each * recipe.calibration.validation
    learned = tokens_learned(recipe, each, count_of_texts)
    patient = recipe.adaptation is not None and recipe.adaptation.patient
    work = {
        "reading": 2.0 * tokens * (target.parameters + source.parameters) * reads,
        own.work: own.flops,
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
        "safety": screened.flops,
    }
    besides, more = besides_needs(recipe, models, each, passes)
    work |= besides
    batches = (
        2 * count_of_texts * reads + recipe.calibration.holdout * (passes + trained + recipe.evaluation.source) + more
    ) / max(recipe.calibration.batch_size, 1)
    steps = {
        "batches": batches + said * answering + screened.batches + learned / max(each, 1.0) + written.passes,
        "pairs": own.solves,
        "loads": 2.0 + passes / 2 + 2 * trained,
    }
    parts = ", ".join(f"{name} {flops / 1e12:,.1f}" for name, flops in work.items() if flops)
    return Estimate(
        memory,
        disk,
        sum(work.values()),
        (
            f"{rows:,} rows of pooled activations from {tokens:,} tokens" + (" at most" if read is None else "")
            if reads
            else "weights meet weights: no text is read for them",
            f"memory {size(memory)}: the larger of a forward pass {size(forward)} and {own.work} {size(own.memory)}"
            + (f" and training {size(training + teacher)}" if training else "")
            + f", plus {size(RUNTIME + WORKSPACE)} for the program; one model at a time",
            f"disk {size(disk)}: activations {size(state)}, plans {size(own.plans)}, moved weights "
            f"{size(own.moved)}, merged models {size(merged)} ({count})"
            + (f", training {size(kept)}" if kept else "")
            + (f", what teachers say {size(events)} at most" if events else ""),
            f"work {sum(work.values()) / 1e12:,.1f} TFLOP: {parts}",
            *([_passes_at_most(recipe, learned)] if patient else []),
            *([written.note] if written.texts else []),
        ),
        work,
        own.touched,
        steps,
        {"weights": weights, own.work: own.memory, "training": training, "teacher": teacher},
        read is None or patient,
    )


def unpacked_bytes(*parties: Party) -> int:
    """Disk that quantised models take once they are unpacked, in the cache, kept for later runs."""
    packed = (party for party in parties if party.located.packed is not None and not party.located.unpacked)
    return sum(party.facts.bytes_on_disk for party in packed)


def together(needs: Sequence[Estimate]) -> Estimate:
    """Of methods that are compared one after the other: models read once, all else for each; an upper figure."""
    if len(needs) == 1:
        return needs[0]
    names = dict.fromkeys(name for one in needs for name in one.work)
    work = {name: sum(one.work.get(name, 0.0) for one in needs) for name in names}
    work["reading"] = max(one.work["reading"] for one in needs)
    memory = dict.fromkeys(name for one in needs for name in one.memory)
    return Estimate(
        max(one.memory_bytes for one in needs),
        sum(one.disk_bytes for one in needs),
        sum(work.values()),
        tuple(dict.fromkeys(note for one in needs for note in one.notes)),
        work,
        sum(one.touched for one in needs),
        {name: sum(one.steps[name] for one in needs) for name in needs[0].steps},
        {name: max(one.memory.get(name, 0) for one in needs) for name in memory},
        any(one.bound for one in needs),
    )


def _passes(recipe: Recipe) -> int:
    """Times the hold-out is read by a model of the target's size: the target, results, and placebos of each."""
    measured = 1 if recipe.evaluation.controls_at == "chosen" else len(recipe.fusion.alpha)
    return 1 + measured * (1 + len(METHODS[recipe.method].placebos(recipe)))


def _weighed(recipe: Recipe) -> int:
    """Times the validation text is read by a model of the target's size, to choose a strength."""
    if recipe.fusion.searched:
        return SEARCHES
    asked = strength_is_chosen(recipe) or recipe.select == "validation"
    return 1 + len(recipe.fusion.alpha) if asked else 0


def _asked(recipe: Recipe) -> float:
    """Tokens of all questions and answers; of a task that is not here, as many as the usual one has."""
    evaluation = recipe.evaluation
    questions = sum(_lines(choices.path) for choices in evaluation.choices)
    questions += len(evaluation.all_tasks) * min(evaluation.limit or QUESTIONS, QUESTIONS)
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
    return options.passes * _samples(options, read) * longest


def _samples(options: Adaptation, read: int) -> int:
    """Training samples: of a file of their own as many as are asked for, else of the `read` calibration texts."""
    return options.samples if options.path is not None else min(options.samples, read)


def events_kept(recipe: Recipe, each: float, read: int, target: ModelFacts) -> int:
    """Bytes of the teacher cache and those of placebos that need one, at most (sizes: `training.event_cache`)."""
    options = recipe.adaptation
    if options is None or not options.distilled:
        return 0
    caches = 1 + len({"self", "untuned"} & set(options.controls))
    event = 4 if target.vocab <= 1 << 16 else 6
    return int(caches * _samples(options, read) * each * (12 + event * options.teaching.events))


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
