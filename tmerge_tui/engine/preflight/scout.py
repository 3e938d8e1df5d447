"""`tmerge scout`: in about a minute, on TEXTS texts, whether the source has anything to give, and what it would take.

Each model reads validation text, learns training text for a few steps and reads again, one model in memory at a time.
What the source says better than the target *after both have learnt* is headroom: fine-tuning alone would not reach it.
It is an early estimate, since a whole training goes further. The hold-out has no part in it. What was found is kept
(`scouted`) and found again; weights that are still on the Hub are fetched only when that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tmerge_tui.engine.evaluation.bits_per_byte import Scores, between
from tmerge_tui.engine.preflight import scouted
from tmerge_tui.engine.preflight.arm_times import arm_times
from tmerge_tui.engine.preflight.check import Opened, open_recipe
from tmerge_tui.engine.preflight.download import brought
from tmerge_tui.engine.preflight.estimate import estimate
from tmerge_tui.engine.preflight.overlap import overlap
from tmerge_tui.engine.preflight.reading import UNREAD, read_text
from tmerge_tui.engine.preflight.rehearsal import BATCH, LENGTH, STEPS, Rehearsal, rehearse
from tmerge_tui.engine.preflight.speed import timed
from tmerge_tui.engine.prepared import Estimate, Party
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.report.scouting import judged
from tmerge_tui.errors import StorageError
from tmerge_tui.events import Emit, RunStarted, StageFinished, Warned
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import finite, size
from tmerge_tui.recipe import Recipe
from tmerge_tui.recipe.adaptation import Teacher
from tmerge_tui.run_folder import key

TEXTS = 50  # measured; tuning goes through STEPS * BATCH others
STAGES = (
    ("scout_text", "Read the text with both tokenizers", 0.05),
    ("scout_target", "Try the target", 0.35),
    ("scout_source", "Try the source", 0.6),
)


def scout(recipe: Recipe, emit: Emit, download: bool = False) -> dict[str, Any]:
    """What was found, as JSON: "outcome" is headroom, none, open or unknown; see `report/scouting.py`.

    Without `download`, models whose weights are on the Hub are not run, and "pending" says how big they are. Raises
    CheckError with all problems of models and text, and what running a model raises.
    """
    opened = open_recipe(recipe)
    recipe, models = opened.recipe, opened.models
    stages = [{"name": name, "label": label, "weight": weight} for name, label, weight in STAGES]
    emit(RunStarted("scout", os.getpid(), str(opened.device), {}, stages))
    pending = {one.folder: one for _, party in models.items() for one in party.located.downloads}
    told: dict[str, Any] = {
        "pending": [{"name": one.name, "bytes": sum(f.size for f in one.missing)} for one in pending.values()]
    }
    if pending and not download:
        found: dict[str, Any] = {"tokenizers": _tokenizers(opened, emit), "models": None, "headroom": None}
        for one in told["pending"]:
            message = f"its weights are on the Hub ({size(one['bytes'])}): --download fetches them and runs the models"
            emit(Warned("scout", f"{one['name']}: {message}"))
    else:
        if any(party.located.downloads or not party.located.whole for _, party in models.items()):
            models = brought(models, emit)
            told["pending"] = []
            opened = Opened(recipe, models, opened.corpus, opened.training, opened.device)
        found = _found(opened, emit)
    needs, arms = _time(opened, found)
    whole = {
        **told, **found, "texts": {"measured": len(_held(opened)), "wanted": TEXTS, "tuned": len(_learnt(opened))},
        "device": str(opened.device), "estimate": needs.as_json(), "arms": arms,
    }  # fmt: skip
    return finite({**judged(whole, recipe.evaluation.margin), **whole})


def _found(opened: Opened, emit: Emit) -> dict[str, Any]:
    """Of this content, from the cache where it was found before."""
    recipe, facts = opened.recipe, opened.models.each(lambda party: party.facts)
    where = scouted.place(recipe, facts, opened.device)
    calibration, teacher = recipe.calibration, _teacher(recipe)
    texts = [[sample.identity for sample in part] for part in (_held(opened), _learnt(opened))]
    content = key(
        texts, calibration.max_length, calibration.chat_template, [teacher.positions, teacher.blanks],
        [TEXTS, STEPS, BATCH, LENGTH], recipe.evaluation.resamples, recipe.seed,
    )  # fmt: skip
    known = scouted.known(where, content)
    if known is not None:
        for stage, _, _ in STAGES:
            emit(StageFinished(stage, 0.0, "cached"))
        return known
    tokenizers = _tokenizers(opened, emit)
    seen = {
        role: rehearse(recipe, party, _held(opened), _learnt(opened), opened.device, emit)
        for role, party in opened.models.items()
    }
    found = {
        "tokenizers": tokenizers,
        "models": {role: _plain(party, seen[role]) for role, party in opened.models.items()},
        "headroom": _headroom(recipe, Pair(target=seen["target"], source=seen["source"])),
    }
    try:
        scouted.keep(where, content, found)
    except StorageError as error:
        emit(Warned("scout", f"what was found is not kept for later: {error.found}"))
    return found


def _held(opened: Opened) -> tuple[Any, ...]:
    return opened.corpus.validation[:TEXTS]


def _learnt(opened: Opened) -> tuple[Any, ...]:
    return opened.training[: STEPS * BATCH]


def _teacher(recipe: Recipe) -> Teacher:
    return Teacher() if recipe.adaptation is None else recipe.adaptation.teaching


def _tokenizers(opened: Opened, emit: Emit) -> dict[str, Any]:
    """Shares of 1, and whether the source's bits per byte say anything at all."""
    models, mode, held = opened.models, opened.recipe.calibration.chat_template, _held(opened)
    stage, label, _ = STAGES[0]
    with Progress(emit, stage, label, len(held), "texts") as progress:
        found = overlap(models, held, _teacher(opened.recipe), mode)
        progress.advance(len(held))
    return {
        "shared_vocabulary": found.vocabulary,
        "positions_with_teacher": found.positions,
        "refused": found.refused,
        "unread": dict(found.unread.items()),
        "comparable": max(share for _, share in found.unread.items()) <= UNREAD,
    }


def _plain(party: Party, seen: Rehearsal) -> dict[str, Any]:
    return {
        "name": party.facts.label,
        "before": seen.before.bits_per_byte,
        "after": None if seen.after is None else seen.after.bits_per_byte,
        "steps": seen.steps,
        "learning_rate": seen.learning_rate,
        "forward": seen.forward,
        "training": seen.training,
        "why_not_tuned": seen.why_not,
    }


def _headroom(recipe: Recipe, seen: Pair[Rehearsal]) -> dict[str, Any]:
    """Source minus target in bits per byte with paired intervals: below 0 the source is better."""
    target, source = seen.target, seen.source
    tuned = target.after is not None and source.after is not None
    return {
        "untouched": _interval(recipe, source.before, target.before),
        "against_tuned_target": _interval(recipe, source.before, target.best) if target.after is not None else None,
        "both_tuned": _interval(recipe, source.best, target.best) if tuned else None,
    }


def _interval(recipe: Recipe, a: Scores, b: Scores) -> dict[str, float]:
    return between(a, b, recipe.evaluation.resamples, recipe.seed)


def _time(opened: Opened, found: Mapping[str, Any]) -> tuple[Estimate, list[dict[str, Any]]]:
    """The estimate of the whole recipe, and of each arm once both models have been run."""
    recipe, models, corpus = opened.recipe, opened.models, opened.corpus
    facts = models.each(lambda party: party.facts)
    seen = read_text(recipe, models.source, models.target, corpus, ())
    texts = len(corpus.calibration)
    needs = estimate(recipe, facts, None if seen.problems else (seen.rows, seen.tokens), texts)
    pace = None if found["models"] is None else scouted.paces(found)
    batch = recipe.calibration.batch_size * recipe.calibration.max_length
    needs = timed(needs, facts.source, facts.target, batch, opened.device, pace)
    if pace is None or needs.seconds is None:
        return needs, []
    each = seen.tokens / max(texts, 1)
    return needs, [asdict(one) for one in arm_times(recipe, pace, each, texts, needs.seconds)]
