"""Training on text that the source writes, the real text last (stages "write" to "adapt_written").

Only once more passes over the real text have stopped helping: as long as they do, another pass is worth more. The
source continues beginnings of training texts, or answers their questions; a sieve chooses what is learnt; the target
learns it with the source's events, and goes on with the real text for as long as validation text gains by it.

    synthetic             written by the source, then the real text
    control_self_written  as much text, written by the target itself, in the same number of steps; then the same
    control_more_passes   the real text alone, in as many steps as `synthetic` has had
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tmerge_tui.engine.data.corpus import render, uses_template
from tmerge_tui.engine.evaluation.bits_per_byte import Text, losses, tokens
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.arms import Arm, Examples, Setup, prepare_examples, trained_piece
from tmerge_tui.engine.training.openings import Opening, openings
from tmerge_tui.engine.training.patience import PASSES, has_ended
from tmerge_tui.engine.training.piece import TrainedPiece
from tmerge_tui.engine.training.sieve import Draft, Sieved, sieve, whole_sentences
from tmerge_tui.engine.training.teaching import Speaker, what_is_said
from tmerge_tui.engine.training.trainer import steps_of
from tmerge_tui.engine.training.writing import write
from tmerge_tui.events import Emit, Logged, StageFinished, Warned
from tmerge_tui.models.forward import release
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.recipe.synthetic import Synthetic
from tmerge_tui.run_folder import RunDir, key

WRITE, READ, READ_SELF, TRAIN = "write", "teacher_written", "teacher_written_self", "adapt_written"
STAGES = (WRITE, READ, READ_SELF, TRAIN)
SHOWN = 3  # written texts in the report


def train_on_written(
    prepared: Prepared, setup: Setup, trained: Sequence[TrainedPiece], run: RunDir, emit: Emit
) -> tuple[list[TrainedPiece], dict[str, Any]]:
    """(the trainings, `synthetic` of report.json), none with the reason under "why_not" where it is too early.

    Raises what writing, reading and training raise.
    """
    options, asked = setup.options, setup.options.synthetic
    assert asked is not None
    if reason := too_early(options, trained):
        return [], _skipped(emit, reason, STAGES)
    mode, source = prepared.recipe.calibration.chat_template, prepared.source
    begun = openings(setup.examples.samples[: asked.texts], asked.beginning)
    if not begun:
        return [], _skipped(emit, "no training text has a beginning to go on from, or a question to answer", STAGES)
    sieved, told = {}, {}
    with Progress(emit, WRITE, "Writing text", 2 * len(begun) * asked.per_text, "texts") as progress:
        for party in (source, prepared.target):
            sieved[party.role], told[party.role] = _written(prepared, setup, party, begun, asked, run, emit, progress)
    plain = {"why_not": "", "texts": len(begun), **asked.model_dump(), **told}
    if not (sieved["source"].kept and sieved["target"].kept):
        reason = f"nothing that was written can be used ({_counted(sieved)})"
        return [], {**plain, **_skipped(emit, reason, STAGES[1:])}
    drafts = {"source": sieved["source"].kept}
    drafts["target"] = _as_much(sieved["target"].kept, drafts["source"])
    fixed = options.model_copy(
        update={"epochs": asked.epochs, "max_steps": None, "patience": None, "schedule": "constant"}
    )
    setups = {}
    for role, stage in (("source", READ), ("target", READ_SELF)):
        samples = [draft.sample for draft in drafts[role]]
        examples = prepare_examples(samples, prepared.target.tokenizer, fixed, mode, False)
        setups[role] = replace(setup, examples=examples, teacher=_said(prepared, setup, examples, run, emit, stage))
    first = steps_of(fixed, len(setups["source"].examples.blocks))
    setups = {r: replace(s, options=fixed.model_copy(update={"max_steps": first})) for r, s in setups.items()}
    found = _train(setup, setups, first, emit)
    examples = setups["source"].examples
    return found, {**plain, "steps": first, "samples": len(examples.samples), "tokens": examples.tokens} | {
        "examples": [draft.sample.plain for draft in drafts["source"][:SHOWN]]
    }


def too_early(options: Adaptation, trained: Sequence[TrainedPiece]) -> str:
    """Why nothing is written yet; empty once passes over the real text have stopped helping."""
    distilled = next((piece for piece in trained if piece.arm == "distilled"), None)
    if distilled is None:
        return "nothing was distilled, so the source has nothing to write that helps"
    if not has_ended(distilled.figures.told, options.patience or PASSES, options.min_gain):
        return (
            f"passes over the real text still help after the {options.max_epochs:g} that are allowed, and another one "
            "is worth more than written text; raise adaptation.max_epochs"
        )
    return ""


def _skipped(emit: Emit, reason: str, stages: Sequence[str]) -> dict[str, Any]:
    emit(Warned(stages[0], f"nothing is trained on written text: {reason}"))
    for stage in stages:
        emit(StageFinished(stage, 0.0, "skipped"))
    return {"why_not": reason}


def _written(
    prepared: Prepared,
    setup: Setup,
    party: Party,
    begun: Sequence[Opening],
    asked: Synthetic,
    run: RunDir,
    emit: Emit,
    progress: Progress,
) -> tuple[Sieved, dict[str, Any]]:
    """What one model has written, sieved, and how that went."""
    recipe, mode = prepared.recipe, prepared.recipe.calibration.chat_template
    assert recipe.adaptation is not None
    tuned = setup.tuned if party is prepared.source else None
    speaker = Speaker.of(prepared, party, emit, tuned)

    def warn(message: str) -> None:
        emit(Warned(WRITE, message))

    repeated = [one for one in begun for _ in range(asked.per_text)]
    prompts = [one.prompt(party.tokenizer, mode) for one in repeated]
    made, how = write(speaker.model, speaker.content, prompts, asked, recipe.seed, run, progress, warn, speaker.inside)
    del speaker  # its model: one is in memory at a time
    shown = [whole_sentences(one.text, one.ended) for one in made]
    drafts = [one.draft(text) for one, text in zip(repeated, shown, strict=True)]
    cut_off = [not text and not one.ended for text, one in zip(shown, made, strict=True)]

    def told(left: Sequence[Draft]) -> tuple[list[float], list[float]]:
        source, target = (
            _bits(prepared, Speaker.of(prepared, each, emit, tuned), left, run, warn)
            for each, tuned in ((prepared.source, setup.tuned), (prepared.target, None))
        )
        return source, target

    held = (*prepared.corpus.holdout, *prepared.corpus.validation)
    sieved = sieve(drafts, cut_off, setup.examples.samples, held, asked.keep, asked.ngram, told)
    figures = {"written": len(made), "kept": len(sieved.kept), "dropped": sieved.dropped, "by": how}
    figures["tokens"] = sum(one.tokens for one in made)
    emit(Logged("info", f"{party.facts.label} wrote {len(made):,} texts by {how}, {len(sieved.kept):,} are kept"))
    return sieved, figures


def _bits(prepared: Prepared, speaker: Speaker, drafts: Sequence[Draft], run: RunDir, warn: Any) -> list[float]:
    """Bits per byte of what was written, told by one model; NaN where it reads nothing of it."""
    recipe, tokenizer = prepared.recipe, speaker.model.tokenizer
    length, mode = recipe.calibration.max_length, recipe.calibration.chat_template
    texts = [_text(draft, tokenizer, length, mode) for draft in drafts]
    named = key("told-1", *speaker.content, [(text.ids, text.first) for text in texts])
    piece = run.piece("told", named, ".json")
    if not piece.exists():
        model = speaker.model.load()
        with speaker.inside(model):
            bits = losses(model, texts, recipe.evaluation.batch_size, warn)
        run.save_json(piece, bits)
        del model
        release()
    bits = json.loads(piece.read_text(encoding="utf-8"))
    return [b / text.bytes if text.bytes else math.nan for b, text in zip(bits, texts, strict=True)]


def _text(draft: Draft, tokenizer: Any, length: int, mode: str) -> Text:
    """The text as the model reads it, of which what was written is scored."""
    whole = render(draft.sample, tokenizer, mode)
    begin = whole.rfind(draft.written)
    ids, offsets = tokens(whole, tokenizer, length)
    bos = tokenizer.bos_token_id
    templated = uses_template(draft.sample, tokenizer, mode)
    head = [] if templated or bos is None or ids[:1] == [bos] else [bos]
    end = begin + len(draft.written)
    mine = [i for i, (a, b) in enumerate(offsets[: length - len(head)]) if begin <= a < b <= end]
    mine = [i for i in mine if i + len(head)]  # before the first token is nothing that tells it
    if begin < 0 or not mine:
        return Text((), 0, 0)
    size = len(whole[offsets[mine[0]][0] : offsets[mine[-1]][1]].encode())
    return Text((*head, *ids[: mine[-1] + 1]), mine[0] + len(head), size)


def _as_much(drafts: Sequence[Draft], measure: Sequence[Draft]) -> tuple[Draft, ...]:
    """The best of them, until they are as many bytes."""
    most = sum(len(draft.sample.plain.encode()) for draft in measure)
    total, taken = 0, 0
    while taken < len(drafts) and total < most:
        total += len(drafts[taken].sample.plain.encode())
        taken += 1
    return tuple(drafts[:taken])


def _said(prepared: Prepared, setup: Setup, examples: Examples, run: RunDir, emit: Emit, stage: str) -> Any:
    """The source's events of written text; none where it reads along."""
    if setup.source is not None:
        emit(StageFinished(stage, 0.0, "skipped"))
        return None
    return what_is_said(prepared, prepared.source, examples, run, emit, stage, setup.tuned)


def _train(setup: Setup, written: dict[str, Setup], first: int, emit: Emit) -> list[TrainedPiece]:
    """Three arms for every seed; each has its own steps, and the third as many as the first has had."""
    options, most = setup.options, steps_of(setup.options, len(setup.examples.blocks))
    total = len(options.seeds) * (3 * first + 3 * most)
    found: dict[str, list[TrainedPiece]] = {
        name: [] for name in ("synthetic", "control_self_written", "control_more_passes")
    }
    with Progress(emit, TRAIN, "Training on written text", total, "steps") as progress:
        for seed in options.seeds:
            for role, before, after in (
                ("source", "written", "synthetic"),
                ("target", "written_self", "control_self_written"),
            ):
                begun = trained_piece(written[role], Arm(before, terms=("source",)), seed, first, progress)
                then = replace(setup, before=begun)
                found[after].append(trained_piece(then, Arm(after, terms=("source",)), seed, most, progress))
            steps = first + found["synthetic"][-1].figures.steps
            longer = {"epochs": 1.0, "max_steps": steps, "patience": None, "schedule": "stable"}
            progress.total -= first + most - steps
            more = replace(setup, options=options.model_copy(update=longer))
            arm = Arm("control_more_passes", terms=("source",))
            found[arm.name].append(trained_piece(more, arm, seed, steps, progress))
    return [piece for pieces in found.values() for piece in pieces]


def _counted(sieved: dict[str, Sieved]) -> str:
    return "; ".join(
        f"{role}: " + ", ".join(f"{number:,} {reason}" for reason, number in each.dropped.items())
        for role, each in sieved.items()
    )
