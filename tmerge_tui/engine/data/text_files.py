"""Text files by suffix: .txt, .jsonl, .csv, .parquet. One value a sample: a text, or a tuple of chat messages.

Chat messages are lists of {role, content}, or of {from, value} as some data sets write them (human and gpt become user
and assistant). A column written `prompt+response` joins two text fields into a conversation of user and assistant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.errors import DataError

Value = str | tuple[dict[str, str], ...]
KNOWN_COLUMNS = ("text", "messages", "conversations")
ROLES = {"human": "user", "gpt": "assistant"}
CSV_BLOCK = 16 << 20  # bytes; no row may be longer


@dataclass(frozen=True)
class Read:
    """The samples of one file in file order; `empty` counts the missing and blank ones, which are not among them."""

    values: tuple[Value, ...]
    column: str
    empty: int = 0
    warnings: tuple[str, ...] = ()


def read_file(path: Path, column: str | None) -> Read:
    """Reads one field of a file. `column` None: text, messages, conversations, or the only string field.

    A .txt has no fields: each line that is not blank is a sample.
    Raises DataError: no such file, empty, not UTF-8, broken (with the line), unknown suffix, no such field, not text.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: {'suffix ' + path.suffix if path.suffix else 'no suffix'}",
            f"one of {', '.join(READERS)}",
            "convert the file, or give it the suffix of what it holds",
        )
    try:
        if path.stat().st_size == 0:
            raise _no_samples(path)
        read = reader(path, column)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason}", "UTF-8", "save the file as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}", "a file that can be read", "check calibration.path"
        ) from error
    if not read.values:
        raise _no_samples(path)
    return read


def _read_txt(path: Path, column: str | None) -> Read:
    with path.open(encoding="utf-8-sig") as file:
        lines = tuple(text for line in file if (text := line.rstrip("\n")).strip())
    warnings = (f"{path}: a .txt has no fields: column {column} is not used",) if column else ()
    return Read(lines, "line", warnings=warnings)


def _read_jsonl(path: Path, column: str | None) -> Read:
    with path.open(encoding="utf-8-sig") as file:
        records = [(f"line {n}", _json_object(path, n, line)) for n, line in enumerate(file, 1) if line.strip()]
    if not records:
        raise _no_samples(path)
    first = records[0][1]
    column = pick_column(path, column, list(first), [k for k, v in first.items() if isinstance(v, str)])
    return _collect(path, column, records)


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path}, line {number}: not valid JSON: {error}", "one JSON object a line", "correct or remove that line"
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"{path}, line {number}: found {_kind(record)}",
            'one JSON object a line, such as {"text": "..."}',
            "wrap the value in an object",
        )
    return record


def _read_csv(path: Path, column: str | None) -> Read:
    import pyarrow as pa
    import pyarrow.csv as pc

    reading, parsing = pc.ReadOptions(block_size=CSV_BLOCK), pc.ParseOptions(newlines_in_values=True)
    with _arrow(path):
        with pc.open_csv(path, reading, parsing) as stream:
            schema = stream.schema
        column = pick_column(path, column, schema.names, _strings(schema))
        fields = _fields(column, schema.names)
        as_text = pc.ConvertOptions(include_columns=fields, column_types={name: pa.string() for name in fields})
        rows = pc.read_csv(path, reading, parsing, as_text).to_pylist()
    return _collect(path, column, ((f"row {n}", row) for n, row in enumerate(rows, 1)))


def _read_parquet(path: Path, column: str | None) -> Read:
    import pyarrow.parquet as pq

    with _arrow(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        column = pick_column(path, column, schema.names, _strings(schema))
        fields = _fields(column, schema.names)
        groups = (file.read_row_group(i, columns=fields).to_pylist() for i in range(file.num_row_groups))
        rows = (row for group in groups for row in group)
        return _collect(path, column, ((f"row {n}", row) for n, row in enumerate(rows, 1)))


@contextmanager
def _arrow(path: Path) -> Iterator[None]:
    """What pyarrow says about a broken file as DataError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise DataError(f"{path}: not UTF-8 text: {error}", "UTF-8", "save the file as UTF-8") from error
        raise DataError(f"{path}: {error}", f"a whole {path.suffix} file", "correct or export it again") from error


READERS: dict[str, Callable[[Path, str | None], Read]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _strings(schema: Any) -> list[str]:
    """The names of the string fields of an arrow schema."""
    import pyarrow.types as pt

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pt.is_dictionary(kind) else kind
        return pt.is_string(kind) or pt.is_large_string(kind)

    return [field.name for field in schema if is_text(field.type)]


def pick_column(path: Path | str, column: str | None, names: list[str], strings: list[str]) -> str:
    """The field to read. Raises DataError listing the fields when it is not there or not clear."""
    listed = ", ".join(names) or "none"
    if column is not None:
        missing = [name for name in _fields(column, names) if name not in names]
        if missing:
            raise DataError(
                f"{path}: no field {', '.join(missing)}", f"one of: {listed}", "set calibration.column to one of them"
            )
        return column
    for name in KNOWN_COLUMNS:
        if name in names:
            return name
    if len(strings) != 1:
        raise DataError(
            f"{path}: fields {listed}",
            f"{', '.join(KNOWN_COLUMNS)}, or a single field of text",
            "set calibration.column to the field to read",
        )
    return strings[0]


def _fields(column: str, names: list[str]) -> list[str]:
    """`prompt+response` is two fields, unless one is called just that."""
    return [column] if column in names else column.split("+", 1)


def _collect(path: Path, column: str, records: Iterable[tuple[str, dict[str, Any]]]) -> Read:
    values: list[Value] = []
    empty = 0
    for where, record in records:
        value = value_of(path, where, column, record)
        if value is None:
            empty += 1
        else:
            values.append(value)
    return Read(tuple(values), column, empty)


def value_of(path: Path | str, where: str, column: str, record: dict[str, Any]) -> Value | None:
    """The text or messages of one record; None when missing or empty."""
    fields = _fields(column, list(record))
    for name in fields:
        if name not in record:
            raise DataError(
                f"{path}, {where}: no field {name}; it has {', '.join(record) or 'none'}",
                f"{name} in every record",
                "correct or remove that record",
            )
    if len(fields) == 2:
        pair = [{"role": r, "content": record[n]} for r, n in zip(("user", "assistant"), fields, strict=True)]
        return None if all(record[n] is None for n in fields) else _messages(path, where, column, pair)
    value = record[column]
    if value is None or value == []:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _messages(path, where, column, value)
    raise _not_text(path, where, column, value)


def _messages(path: Path | str, where: str, column: str, value: list[Any]) -> tuple[dict[str, str], ...]:
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise _not_text(path, where, column, value)
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise _not_text(path, where, column, value)
        messages.append({"role": ROLES.get(role, role), "content": content})
    return tuple(messages)


def _not_text(path: Path | str, where: str, column: str, value: Any) -> DataError:
    return DataError(
        f"{path}, {where}: field {column} holds {_kind(value)}",
        "text, or a list of {role, content} (or {from, value}) messages whose contents are text",
        "set calibration.column to another field, or correct that record",
    )


def _no_samples(path: Path) -> DataError:
    return DataError(f"{path}: empty", "at least 2 samples to align on and 2 to hold out", "give a file with text")


def _kind(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
