"""The safety screen (stage "safety"): what a merge did to declining, and to answering what is harmless.

Every model that is asked gets the same prompts under its own chat template. Differences are to the target on the same
prompts, with paired 95 % intervals over pairs. A model without a chat template has no such behaviour to lose: nothing
is asked of it, nor of what is merged into it. It is a screen, not a certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tmerge_tui.engine.evaluation.bits_per_byte import Scores
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.evaluation.safety_answers import (
    Asked,
    answers,
    ask,
    declined,
    has_template,
    log_odds,
    openings,
)
from tmerge_tui.engine.evaluation.safety_prompts import PromptPair, PromptSet, read_prompts
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import DataError
from tmerge_tui.events import Emit, Logged
from tmerge_tui.models.forward import release
from tmerge_tui.recipe.safety import Safety

STAGE = ("safety", "Ask what is declined", 0.1)  # only with evaluation.safety
WITHOUT = "it has no chat template: a base model has no such behaviour to lose"


@dataclass(frozen=True)
class Answered:
    """What one model made of each prompt, and of each twin."""

    declined: tuple[bool, ...]
    twins_declined: tuple[bool, ...]
    log_odds: tuple[float, ...]  # nats
    twins_log_odds: tuple[float, ...]


MEASURES = tuple(Answered.__dataclass_fields__)


def problems(options: Safety | None, models: Sequence[tuple[str, Any, int | None]]) -> tuple[list[str], list[str]]:
    """(what keeps the screen from running, what is to be known beside) before any work.

    `models`: role, tokenizer and context in tokens of each that is to be asked.
    """
    if options is None:
        return [], []
    try:
        found = read_prompts(options)
    except DataError as error:
        return [f"evaluation.safety: {error}"], []
    wrong: list[str] = []
    notes = list(found.notices)
    for role, tokenizer, context in models:
        if not has_template(tokenizer):
            notes.append(f"evaluation.safety: {role}: {WITHOUT}; nothing is measured for it")
            continue
        try:
            _fits(ask(found, tokenizer), _longest(found, tokenizer, options), context)
        except DataError as error:
            wrong.append(f"evaluation.safety, {role}: {error}")
    return wrong, notes


def given(options: Safety | None, tokenizer: Any) -> list[tuple[int, ...]]:
    """Tokens of all that a model is given; none where it is not asked, or `problems` says why it cannot be."""
    if options is None or not has_template(tokenizer):
        return []
    try:
        found = read_prompts(options)
        languages = {pair.language for pair in found.pairs}
        opened = [ids for one in sorted(languages) for _, ids in openings(found, tokenizer, one)]
        return [*(one.ids for one in ask(found, tokenizer)), *opened]
    except DataError:
        return []


def screen(
    target: Evaluator,
    source: Callable[[], Evaluator] | None,  # None: not asked
    variants: Sequence[Variant],  # results and placebos in the target; each is asked once
    options: Safety,
    emit: Emit,
) -> dict[str, Any]:
    """`safety` of report.json:

    {"pairs", "origins", "languages", "max_new_tokens", "without": roles that have no chat template, "rows", "changed"}.
    A row is {"model", "alpha", a measure of MEASURES: {"value", "difference", "low", "high"} each, "groups": {category:
    {"pairs", "declined", "twins_declined"}}}: shares and mean log-odds; differences are to the target, None for itself.
    "changed" lists {"model", "alpha", "text", "category", "twin", "declined"} where a variant does otherwise than the
    target. Raises DataError, MemoryShortage, StorageError.
    """
    found = read_prompts(options)
    without = [] if has_template(target.subject.tokenizer) else ["target"]
    asked = [] if without else [*{one.name: one for one in (Variant("target"), *variants)}.values()]
    of_source = None if source is None else source()
    if of_source is not None and not has_template(of_source.subject.tokenizer):
        without.append("source")
        of_source = None
    if not asked:
        of_source = None  # nothing to compare it with
    models = len(asked) + (of_source is not None)
    rows: list[tuple[Variant, Answered]] = []
    with Progress(emit, STAGE[0], "Asking what is declined", models * _texts(found), "texts") as progress:
        if of_source is not None:
            rows.append((Variant("source"), _answered(of_source, Variant("source"), found, options, progress)))
            of_source = None
            release()
        rows += [(variant, _answered(target, variant, found, options, progress)) for variant in asked]
    return _as_report(rows, found, options, without, target, emit)


def _answered(
    evaluator: Evaluator, variant: Variant, found: PromptSet, options: Safety, progress: Progress
) -> Answered:
    """Two pieces: openings are not scored anew when answers become longer, and nothing is for another rule."""
    tokenizer, batch = evaluator.subject.tokenizer, evaluator.options.batch_size
    asked = ask(found, tokenizer)
    warn = partial(evaluator.warn, variant.name)
    advance = partial(progress.advance, note=variant.name)
    texts = [one.text for one in asked]
    scored = _texts(found) - len(asked)
    languages = sorted({one.language for one in asked})
    openers = [(language, found.declines[language], found.complies[language]) for language in languages]
    odds = evaluator.measured(
        "safety-odds", variant, ("safety-1", texts, [one.language for one in asked], openers),
        lambda model: log_odds(model, tokenizer, asked, found, batch, warn, advance),
        lambda: progress.skip(scored),
    )  # fmt: skip
    said = evaluator.measured(
        "safety-answers", variant, ("safety-1", texts, options.max_new_tokens),
        lambda model: answers(model, tokenizer, asked, options.max_new_tokens, batch, warn, advance),
        lambda: progress.skip(len(asked)),
    )  # fmt: skip
    no = [declined(answer, one.language, found) for answer, one in zip(said, asked, strict=True)]
    half = len(found.pairs)
    return Answered(tuple(no[:half]), tuple(no[half:]), tuple(odds[:half]), tuple(odds[half:]))


def _as_report(
    answered: Sequence[tuple[Variant, Answered]],
    found: PromptSet,
    options: Safety,
    without: list[str],
    target: Evaluator,
    emit: Emit,
) -> dict[str, Any]:
    ordered = sorted(answered, key=lambda pair: pair[0].model != "target")  # stable: the target first
    rows, changed = [], []
    for variant, mine in ordered:
        baseline = ordered[0][1]
        row: dict[str, Any] = {"model": variant.model, "alpha": variant.alpha}
        for measure in MEASURES:
            row[measure] = _measure(getattr(mine, measure), getattr(baseline, measure), variant, target)
        rows.append(row | {"groups": _groups(mine, found.pairs)})
        changed += _changed(variant, mine, baseline, found.pairs)
        told = f"{row['declined']['value']:.1%} of the prompts, {row['twins_declined']['value']:.1%} of their twins"
        emit(Logged("info", f"safety: {variant.name} declines {told}"))
    return {
        "pairs": len(found.pairs),
        "origins": list(found.origins),
        "languages": sorted({pair.language for pair in found.pairs}),
        "max_new_tokens": options.max_new_tokens,
        "without": without,
        "rows": rows,
        "changed": changed,
    }


def _measure(mine: Sequence[float], baseline: Sequence[float], variant: Variant, target: Evaluator) -> dict[str, Any]:
    value = sum(mine) / len(mine)
    if variant.model == "target":
        return {"value": value, "difference": None, "low": None, "high": None}
    return {"value": value, **target.interval(_each(mine), _each(baseline))}


def _each(values: Sequence[float]) -> Scores:
    """Every prompt counts once: the interval of a mean over prompts."""
    return Scores(tuple(map(float, values)), (1,) * len(values))


def _groups(mine: Answered, pairs: Sequence[PromptPair]) -> dict[str, dict[str, Any]]:
    """Shares of each category, and of each language where there are several."""
    groups: dict[str, list[int]] = {}
    several = len({pair.language for pair in pairs}) > 1
    for at, pair in enumerate(pairs):
        for name in (pair.category, *([f"language {pair.language}"] if several else [])):
            groups.setdefault(name, []).append(at)
    return {
        name: {
            "pairs": len(members),
            "declined": sum(mine.declined[at] for at in members) / len(members),
            "twins_declined": sum(mine.twins_declined[at] for at in members) / len(members),
        }
        for name, members in groups.items()
    }


def _changed(variant: Variant, mine: Answered, baseline: Answered, pairs: Sequence[PromptPair]) -> list[dict[str, Any]]:
    """Prompts and twins that the variant takes otherwise than the target; the source is not ours to explain."""
    if variant.model == "source":
        return []
    named = {"model": variant.model, "alpha": variant.alpha}
    return [
        named | {"text": text, "category": pair.category, "twin": twin, "declined": now[at]}
        for twin, now, before in (
            (False, mine.declined, baseline.declined),
            (True, mine.twins_declined, baseline.twins_declined),
        )
        for at, pair in enumerate(pairs)
        if now[at] != before[at]
        for text in [pair.twin if twin else pair.prompt]
    ]


def _texts(found: PromptSet) -> int:
    """Forward passes that a model makes: every opening behind every prompt and twin, and every answer."""
    return sum(2 * (1 + len(found.declines[p.language]) + len(found.complies[p.language])) for p in found.pairs)


def _longest(found: PromptSet, tokenizer: Any, options: Safety) -> int:
    """Tokens that may stand behind a prompt."""
    languages = {pair.language for pair in found.pairs}
    return max([options.max_new_tokens, *(len(ids) for one in languages for _, ids in openings(found, tokenizer, one))])


def _fits(asked: Sequence[Asked], behind: int, context: int | None) -> None:
    """Raises DataError for prompts that leave no room for their answer."""
    long = [] if context is None else [one for one in asked if len(one.ids) + behind > context]
    if long:
        most = max(len(one.ids) for one in long)
        raise DataError(
            f"{len(long)} of {len(asked)} prompts and twins are longer than the context allows: the longest has {most} "
            f"tokens under the chat template, and its answer {behind}; the model reads {context}",
            f"prompts of at most {max((context or 0) - behind, 0)} tokens, the template's own among them",
            "shorten or remove them, or lower evaluation.safety.max_new_tokens",
        )
