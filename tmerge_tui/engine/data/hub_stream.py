"""Calibration text from a data set on the Hub: the first distinct samples of a shuffled stream, kept for the next run.

The stream's order depends on commit, configuration, split and seed, and on nothing else; so the hold-out, which comes
first, stays the same when `samples` changes. What was chosen is written once, under the Hub's home folder, with the
commit: a resumed run, and one without a connection, read the same texts.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.engine.data.records import Value, left_out, pick_column, value_of
from tmerge_tui.errors import DataError
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.hub.datasets import BUFFER, SHARDS, commit_of, open_stream
from tmerge_tui.recipe import Calibration
from tmerge_tui.run_folder import key

PATIENCE = 20  # rows looked at for each sample wanted, before a set of duplicates is given up


@dataclass(frozen=True)
class Streamed:
    values: tuple[Value, ...]  # distinct, not empty, in the stream's order
    column: str
    commit: str
    warnings: tuple[str, ...] = ()


def read_stream(calibration: Calibration, seed: int, wanted: int) -> Streamed:
    """At most `wanted` samples. Raises DataError: what `open_stream` raises, no such column, offline and not kept."""
    repo = str(calibration.repo_id)
    settings = [repo, calibration.config_name, calibration.split, calibration.column, seed, BUFFER, SHARDS, wanted]
    last = _folder() / f"last-{key(*settings, calibration.revision)}.json"
    warnings: list[str] = []
    try:
        commit = commit_of(repo, calibration.revision)
    except DataError as error:
        if not last.is_file():
            raise
        commit = str(json.loads(last.read_text(encoding="utf-8"))["commit"])
        if not _kept(settings, commit).is_file():
            raise
        warnings.append(f"{repo}: samples of an earlier run used, commit {commit[:8]} ({error.found})")
    kept = _kept(settings, commit)
    if not kept.is_file():
        _keep(kept, _choose(calibration, seed, wanted, commit))
    if not warnings:
        with storage(last):
            write_atomic(last, json.dumps({"commit": commit}).encode())
    with kept.open(encoding="utf-8") as file:
        column, commit, *said = json.loads(next(file))
        warnings += said
        values = tuple(value if isinstance(value, str) else tuple(value) for value in map(json.loads, file))
    return Streamed(values, column, commit, tuple(warnings))


def _choose(calibration: Calibration, seed: int, wanted: int, commit: str) -> Streamed:
    repo = str(calibration.repo_id)
    stream = open_stream(repo, calibration.config_name, calibration.split, commit, seed)
    column, left = calibration.column or "", Counter[str]()
    found: dict[str, Value] = {}
    for number, row in enumerate(stream.rows, 1):
        if number == 1:
            lists = {name: value for name, value in row.items() if isinstance(value, list)}
            column = pick_column(repo, calibration.column, list(stream.columns), list(stream.texts), lists)
        value = value_of(repo, f"row {number} of the stream", column, row, left)
        if value is not None and _filled(value):
            found.setdefault(json.dumps(value, sort_keys=True), value)
        if len(found) >= wanted or number >= PATIENCE * wanted:
            break
    return Streamed(tuple(found.values()), column, commit, tuple(left_out(repo, left)))


def _filled(value: Value) -> bool:
    contents = [value] if isinstance(value, str) else [message["content"] for message in value]
    return any(content.strip() for content in contents)


def _keep(path: Path, chosen: Streamed) -> None:
    lines: list[Any] = [[chosen.column, chosen.commit, *chosen.warnings], *chosen.values]
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _kept(settings: list[Any], commit: str) -> Path:
    return _folder() / f"{key(*settings, commit)}.jsonl"


def _folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "tmerge" / "texts"
