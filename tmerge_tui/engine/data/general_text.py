"""General text: of another kind than the user's, so that what a merge has forgotten shows.

A file, a folder or a data set of the Hub that the recipe names, or the English text that ships. What is measured on and
what a bound is tried on are two parts of it, and neither shares a passage with the user's own text.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui import shipped
from tmerge_tui.engine.data.corpus import Sample, hash_samples, read_pool
from tmerge_tui.engine.data.ngrams import ngrams
from tmerge_tui.errors import DataError
from tmerge_tui.recipe import Calibration, is_text_file
from tmerge_tui.recipe.evaluation import General

PASSAGE = 13  # words in a row that two texts share by copying and not by chance (the usual 13-gram overlap)
SPARE = 50  # samples of a stream that may turn out to be the user's own


@dataclass(frozen=True)
class GeneralText:
    """`measured` is for the report, `validation` for the bound and empty without one; no text is in both."""

    name: str  # as a sentence has it: "general English text"
    measured: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    sha256: str  # of the texts measured on
    warnings: tuple[str, ...]
    commit: str | None = None  # of a data set from the Hub
    comparable: bool = True  # whether the source can read it, so that its bits per byte mean something


def read_general(
    options: General,
    seed: int,
    own: Iterable[Sample],  # the user's texts, whatever they are for
    pinned: Mapping[str, Any] | None = None,  # what an earlier run of the recipe has written down
) -> GeneralText:
    """The same texts for the same settings, seed and own text.

    Raises DataError: missing, empty or unreadable, no such data set, fewer than 2 texts in a part that are not the
    user's own.
    """
    held = 0 if options.bound is None else options.validation
    wanted = options.samples + held
    try:
        pool = read_pool(_origin(options, wanted, pinned or {}), seed)
    except DataError as error:
        raise DataError(error.found, error.expected, error.hint.replace("calibration.path", "the name")) from error
    order = list(pool.samples)
    if pool.commit is None:  # a stream comes shuffled
        random.Random(seed).shuffle(order)
    shared = _shared(order, own)
    left = [sample for number, sample in enumerate(order) if number not in shared]
    warnings = list(pool.warnings)
    if shared:
        warnings.append(
            f"{pool.path}: {len(shared):,} of {len(order):,} general texts hold a passage of the calibration, training "
            f"or held-out text ({PASSAGE} words in a row): left out"
        )
    least = 2 + 2 * bool(held)
    if len(left) < least:
        rest = " that are not the user's own" if shared else ""
        raise DataError(
            f"{pool.path}: {len(left)} general texts{rest}", f"at least {least}", "give more text, of another kind"
        )
    if len(left) < wanted:
        held = max(2, len(left) // 3) if held else 0
        warnings.append(f"{pool.path}: {len(left)} general texts: {wanted} were asked for")
    measured = tuple(left[: min(options.samples, len(left) - held)])
    validation = tuple(left[len(measured) : len(measured) + held])
    return GeneralText(_name(options), measured, validation, hash_samples(measured), tuple(warnings), pool.commit)


def _origin(options: General, wanted: int, pinned: Mapping[str, Any]) -> Calibration:
    """Where the text is, as `read_pool` takes it."""
    shape: dict[str, Any] = {"column": options.column, "samples": wanted + SPARE, "holdout": 2}
    if options.shipped:
        return Calibration(path=str(shipped.folder() / "general" / "english.jsonl"), **shape)
    if is_text_file(options.texts):
        return Calibration(path=options.texts, **shape)
    revision = pinned["commit"] if pinned.get("texts") == options.texts else options.revision
    shape |= {"revision": revision, "config_name": options.config_name, "split": options.split}
    return Calibration(repo_id=options.texts, **shape)


def _name(options: General) -> str:
    if options.shipped:
        return "general English text"
    return f"general text ({Path(options.texts).name if is_text_file(options.texts) else options.texts})"


def _shared(texts: Sequence[Sample], own: Iterable[Sample]) -> set[int]:
    """Numbers of the texts that share a passage with one of `own`, whatever its case and spacing."""
    places: dict[tuple[str, ...], list[int]] = {}
    for number, sample in enumerate(texts):
        for passage in _passages(sample.plain):
            places.setdefault(passage, []).append(number)
    return {number for sample in own for passage in _passages(sample.plain) for number in places.get(passage, ())}


def _passages(text: str) -> set[tuple[str, ...]]:
    return ngrams(text.casefold().split(), PASSAGE)
