"""Tables of text: .csv and .tsv as spreadsheets, databases and scripts write them. Every field is text as it stands."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.engine.data.decoding import read_text
from tmerge_tui.errors import DataError

DELIMITERS = ",;\t|"
NAMED = {",": "commas", "\t": "tabs", ";": "semicolons"}
QUOTINGS: tuple[tuple[dict[str, Any], str], ...] = (  # as pandas, spreadsheets, MySQL, and people write quotes
    ({}, ""),
    ({"skipinitialspace": True}, ""),
    ({"escapechar": "\\", "doublequote": False}, "quotes inside a field follow a backslash"),
    ({"quotechar": "'"}, "fields stand in single quotes"),
    ({"quoting": csv.QUOTE_NONE}, "quotes are read as they stand: some are not closed"),
)
SINGLE = re.compile(r"(^|[,;\t|])'[^'\n]*'([,;\t|]|$)", re.MULTILINE)  # a field in single quotes
NONE = "\0"  # a separator that no text has
LONG = 60  # characters: a header is no sentence
VALUE = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?|true|false|\d{4}-\d\d?-\d\d?([T ][\d:.+Z-]+)?", re.IGNORECASE)

csv.field_size_limit(2**31 - 1)  # a document may be a field


@dataclass(frozen=True)
class Table:
    names: tuple[str, ...]
    rows: tuple[Sequence[str], ...]
    notices: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the fields that hold more than numbers, dates and nothing."""
        return tuple(
            name
            for i, name in enumerate(self.names)
            if any(row[i].strip() and not VALUE.fullmatch(row[i].strip()) for row in self.rows)
        )


def read_table(path: Path, tabs: bool) -> Table:
    """The table in a file; `tabs`: tabs are what its fields should be separated by.

    Separator and quotes are those that give every row the same number of fields. Raises DataError naming the first row
    that has another number where none do, OSError.
    """
    text, notices = read_text(path)
    delimiters = "\t,;|" if tabs else DELIMITERS
    said = re.match(r"sep=(.)\n", text)  # Excel's own way of saying it
    if said:
        delimiters, text = said[1], text[said.end() :]
    rows, delimiter, quotes = _rows(path, text.strip("\n"), delimiters)
    if delimiter != delimiters[0]:
        notices.append(f"{path}: its fields are separated by {NAMED.get(delimiter, repr(delimiter))}")
    if quotes:
        notices.append(f"{path}: {quotes}")
    if not rows:
        return Table((), (), tuple(notices))
    header = [name.strip() for name in rows[0]]
    if _is_data(header):
        names = [f"column{i}" for i in range(1, len(header) + 1)]
        notices.append(f"{path}: no header: its fields are called {', '.join(names)}, and the first line is a sample")
    else:
        names, rows = _unique([name or f"column{i}" for i, name in enumerate(header, 1)]), rows[1:]
    return Table(tuple(names), tuple(rows), tuple(notices))


def _rows(path: Path, text: str, delimiters: str) -> tuple[list[list[str]], str, str]:
    """(rows with the same number of fields, separator, what to say about the quotes)."""
    first = text.split("\n", 1)[0]
    for quoting, told in QUOTINGS:
        if (quoting.get("escapechar") and '\\"' not in text) or (quoting.get("quotechar") and not SINGLE.search(text)):
            continue
        for delimiter in delimiters:
            if delimiter in first:
                rows, odd = _read(text, delimiter, quoting)
                if not odd and rows and len(rows[0]) > 1:
                    return rows, delimiter, told
        if not quoting and first.startswith('"'):
            rows, odd = _read(text, delimiters[0], quoting)
            if not odd:  # one field: the separators in the first line are inside its quotes
                return rows, delimiters[0], ""
    likely = max(delimiters, key=first.count)  # the first on a tie
    rows, odd = _read(text, delimiters[0] if first.count(likely) else NONE, {})
    if first.count(likely) or not re.fullmatch(r"\s*\w+\s*", first):
        raise _uneven(path, text, likely)
    alone, split = _read(text, delimiters[0], {})
    if not split:
        return alone, delimiters[0], ""
    told = "a single field: separators inside it are text"
    return ([[line] for line in text.split("\n") if line.strip()] if odd else rows), delimiters[0], told


def _read(text: str, delimiter: str, quoting: dict[str, Any]) -> tuple[list[list[str]], str]:
    """(rows, what is wrong): reading stops where a row has another number of fields than the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **quoting)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                return rows, f"{len(row)} fields where the first row has {len(rows[0])}"
            if row:
                rows.append(row)
    except csv.Error as error:
        return rows, str(error)
    return rows, ""


def _uneven(path: Path, text: str, delimiter: str) -> DataError:
    rows, odd = _read(text, delimiter, {})
    name = NAMED.get(delimiter, repr(delimiter))
    return DataError(
        f"{path}, row {len(rows)}: {odd}, separated by {name}",  # below the first, which is the header
        "the same number of fields in every row",
        f"correct that row: text that holds {name} stands in double quotes",
    )


def _is_data(header: Sequence[str]) -> bool:
    """Whether the first line of a table is a row and not the names of its fields."""
    sentence = re.compile(r"\S+\s+\S+\s+\S+\s+\S+|[.!?。]$|\n")
    if not any(header):
        return True
    return any(
        len(name) > LONG or sentence.search(name) or re.fullmatch(r"[-+]?\d+([.,]\d+)?", name) for name in header
    )


def _unique(names: list[str]) -> list[str]:
    seen: list[str] = []
    for name in names:
        seen.append(name if name not in seen else f"{name}_{len(seen) + 1}")
    return seen
