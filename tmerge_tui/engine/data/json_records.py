"""Records of a JSON file: one a line, an array of them, or an array somewhere inside one object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmerge_tui.engine.data.decoding import read_text
from tmerge_tui.engine.data.records import is_talk, shown
from tmerge_tui.errors import DataError

Records = list[tuple[str, dict[str, Any]]]  # (where: "line 3", what)
EXPECTED = 'records such as {"text": "..."}, texts, or conversations'


def read_records(path: Path, lines: bool) -> tuple[Records, list[str]]:
    """(the records of a file with where each stands, notices); `lines`: one a line is what the file should hold.

    A text alone is a record of `text`, a list of messages one of `messages`. Raises DataError naming the line or item,
    OSError.
    """
    text, notices = read_text(path)
    whole = text.lstrip()
    found: Records | None = None
    if whole.startswith("[") or (whole.startswith("{") and not lines):
        found = _from_value(path, text, notices)
    return (_from_lines(path, text) if found is None else found), notices


def _from_lines(path: Path, text: str) -> Records:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        plain = line.strip().rstrip(",")  # as arrays are written a record a line
        if plain and plain not in ("[", "]"):
            try:
                item = _parsed(plain)
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: not valid JSON: {error}",
                    "one JSON object a line",
                    "correct or remove that line",
                ) from error
            found.append((f"line {number}", _record(f"{path}, line {number}", item)))
    return found


def _from_value(path: Path, text: str, notices: list[str]) -> Records | None:
    """The items of a file that is one JSON value; None where it is not, and is lines."""
    try:
        data = _parsed(text)
    except ValueError as error:
        try:
            return _from_lines(path, text)
        except DataError:
            first = text.lstrip().split("\n", 1)[0].rstrip().rstrip(",")
            if "Extra data" in str(error) or (first != "[" and _is_json(first)):
                return None  # lines, one of which is broken
        raise DataError(f"{path}: not valid JSON: {error}", "an array of records", "export it again") from error
    items = _items(path, data, notices)
    return [(f"item {n}", _record(f"{path}, item {n}", item)) for n, item in enumerate(items, 1)]


def _items(path: Path, data: Any, notices: list[str]) -> list[Any]:
    """The records in a value: a list itself, the one list in an object, or an object of columns or of records."""
    if not isinstance(data, dict):
        return list(data) if isinstance(data, list) else [data]
    tables = [value for value in data.values() if isinstance(value, dict)]
    if data and len(tables) == len(data):  # as pandas writes tables: by columns, or by rows
        rows = list(tables[0])
        if all(list(table) == rows and not _of_objects(table) for table in tables) and all(map(str.isdigit, rows)):
            return [{name: table[row] for name, table in data.items()} for row in rows]
        return tables if len(tables) > 1 else _items(path, tables[0], notices)
    if len(data) == 1 and isinstance(next(iter(data.values())), list):
        (inside,) = data.values()
        return [data] if is_talk(inside) else _items(path, inside, notices)
    lists = {name: value for name, value in data.items() if isinstance(value, list)}
    if any(is_talk(value) for value in lists.values()):
        return [data]
    if len(lists) == len(data) and len({len(value) for value in lists.values()}) == 1 and not _of_records(lists):
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if len(lists) == 1:
        return next(iter(lists.values()))
    if "train" in lists:
        others = ", ".join(name for name in data if name != "train")
        notices.append(f"{path}: its part train is read, and nothing of {others}")
        return lists["train"]
    return [data]


def _of_objects(table: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in table.values())


def _of_records(lists: Mapping[str, list[Any]]) -> bool:
    return any(isinstance(item, dict) for value in lists.values() for item in value[:1])


def _record(where: str, item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    if isinstance(item, str):
        return {"text": item}
    if is_talk(item):
        return {"messages": item}
    raise DataError(f"{where}: found {shown(item)}", EXPECTED, "correct or remove it")


def _parsed(text: str) -> Any:
    """What JSON says, with what Python and pandas write beside: NaN is nothing, line breaks in a string are text."""
    try:
        return json.loads(text, strict=False, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _is_json(line: str) -> bool:
    try:
        _parsed(line)
    except ValueError:
        return False
    return True
