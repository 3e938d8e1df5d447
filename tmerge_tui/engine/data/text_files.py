"""Text files as people have them: .txt, .md, .json, .jsonl, .csv, .tsv (each also packed), .parquet, .arrow, folders of
such. One value a sample: a text, or a tuple of chat messages (see `records`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.engine.data.decoding import read_text
from tmerge_tui.engine.data.json_records import Records, read_records
from tmerge_tui.engine.data.packing import refuse_pointer, without_packing
from tmerge_tui.engine.data.records import Value, columns_read, left_out, pick_column, value_of
from tmerge_tui.engine.data.tables import read_table
from tmerge_tui.errors import DataError
from tmerge_tui.run_folder import MARK

OTHER_NAMES = {".ndjson": ".jsonl", ".markdown": ".md", ".text": ".txt"}
SKIPPED = ("__MACOSX",)  # folders of what is no text of anybody
BESIDE = ("readme.md", "dataset_info.json", "dataset_dict.json", "state.json")  # of a data set: about its files
LOOKED_AT = 100  # records whose fields are known before one is chosen


@dataclass(frozen=True)
class Read:
    """The samples of one file in file order; `empty` counts the missing and blank ones, which are not among them."""

    values: tuple[Value, ...]
    column: str
    empty: int = 0
    warnings: tuple[str, ...] = ()


def read_file(path: Path, column: str | None) -> Read:
    """Reads one field of a file. `column` None: text, messages, conversations, a known pair, the only list of messages,
    or the only string field.

    A .txt has no fields: each line that is not blank is a sample; of a .md each paragraph. In a folder each .txt and
    .md is a sample whole, and records of its other files are joined.
    Raises DataError: no such file, empty, broken (with the line), unknown suffix, no such field, not text.
    """
    try:
        read = _read_folder(path, column) if path.is_dir() else _reader(path)(path, column)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not read.values:
        raise _no_samples(path)
    return read


def columns_of(path: Path) -> list[str]:
    """The fields one may choose from: of the first records, the header or the schema; none for plain text.

    Raises DataError as `read_file`.
    """
    try:
        return _columns(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _columns(path: Path) -> list[str]:
    kind = _kind(path)
    if path.is_dir():
        parts = [part for part in _files(path) if _kind(part) not in (".txt", ".md")]
        return _columns(parts[0]) if parts else []
    if kind == ".parquet":
        import pyarrow.parquet as pq

        with _arrow(path):
            return list(pq.read_schema(path).names)
    if kind in (".csv", ".tsv"):
        return list(read_table(path, kind == ".tsv").names)
    if kind in (".json", ".jsonl"):
        return _names(records(path)[0])
    if kind == ".arrow":
        return list(_arrow_table(path).column_names)
    return []


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: {error.strerror or error}", "a file that can be read", "check calibration.path")


def records(path: Path) -> tuple[Records, list[str]]:
    """(the objects of a JSON file with where each stands, notices). Raises DataError naming line or item, OSError."""
    found, notices = read_records(path, _kind(path) == ".jsonl")
    if not found:
        raise _no_samples(path)
    return found, notices


def is_table(path: Path) -> bool:
    """Whether a file is a .csv or .tsv by its name."""
    return _kind(path) in (".csv", ".tsv")


def table_rows(path: Path) -> tuple[Records, list[str]]:
    """(the rows of a .csv or .tsv, all fields as text, with where each stands; notices).

    Raises DataError for a row of more or fewer fields than the header, OSError.
    """
    table = read_table(path, _kind(path) == ".tsv")
    if not table.rows:
        raise _no_samples(path)
    rows: Records = [(f"row {n}", dict(zip(table.names, row, strict=True))) for n, row in enumerate(table.rows, 1)]
    return rows, list(table.notices)


def _kind(path: Path) -> str:
    """The suffix, without that of the packing."""
    suffix = without_packing(path).suffix.lower()
    return OTHER_NAMES.get(suffix, suffix)


def _reader(path: Path) -> Callable[[Path, str | None], Read]:
    reader = READERS.get(_kind(path))
    if reader is not None:
        if path.stat().st_size == 0:
            raise _no_samples(path)
        refuse_pointer(path)
        return reader
    raise DataError(
        f"{path}: {'suffix ' + path.suffix if path.suffix else 'no suffix'}",
        f"one of {', '.join(READERS)}, or a folder of them",
        "convert the file, or give it the suffix of what it holds",
    )


def _files(folder: Path) -> list[Path]:
    """What is read of a folder: nothing hidden or locked, no runs of tmerge, of a data set its records and not what is
    said of them."""
    runs = {mark.parent for mark in folder.rglob(MARK)} - {folder}

    def hidden(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        odd = any(part.startswith((".", "~$")) or part in SKIPPED for part in parts)
        return odd or not runs.isdisjoint(path.parents)

    found = sorted(p for p in folder.rglob("*") if p.is_file() and _kind(p) in READERS and not hidden(p))
    others = [path for path in found if path.name.lower() not in BESIDE]
    return others if any(_kind(path) not in (".txt", ".md") for path in others) else found


def _read_folder(folder: Path, column: str | None) -> Read:
    files = _files(folder)
    if not files:
        raise DataError(f"{folder}: no text in it", f"files of {', '.join(READERS)}", "check calibration.path")
    if len(files) == 1:
        return read_file(files[0], column)
    values: list[Value] = []
    notices: list[str] = []
    columns, empty = [], 0
    for file in files:
        if file.stat().st_size == 0:
            empty += 1
            continue
        if _kind(file) in (".txt", ".md"):
            refuse_pointer(file)
            text, more = read_text(file)
            values += [text.strip()] if text.strip() else []
            empty += not text.strip()
            columns.append("file")
        else:
            read = read_file(file, column)
            values += read.values
            empty, more = empty + read.empty, list(read.warnings)
            columns.append(read.column)
        notices += more
    return Read(tuple(values), ", ".join(dict.fromkeys(columns)), empty, tuple(notices))


def _read_txt(path: Path, column: str | None) -> Read:
    text, notices = read_text(path)
    return _plain(path, [line for line in text.split("\n") if line.strip()], "line", column, notices)


def _read_markdown(path: Path, column: str | None) -> Read:
    text, notices = read_text(path)
    return _plain(path, [p.strip("\n") for p in re.split(r"\n\s*\n", text) if p.strip()], "paragraph", column, notices)


def _plain(path: Path, texts: list[str], kind: str, column: str | None, notices: list[str]) -> Read:
    unused = [f"{path}: a {_kind(path)} has no fields: column {column} is not used"] if column else []
    return Read(tuple(texts), kind, warnings=(*notices, *unused))


def _read_json(path: Path, column: str | None) -> Read:
    rows, notices = records(path)
    first: dict[str, Any] = {}
    for _, record in rows[:LOOKED_AT]:
        first |= {name: value for name, value in record.items() if first.get(name) in (None, [], "")}
    column = pick_column(path, column, _names(rows), [k for k, v in first.items() if isinstance(v, str)], _lists(first))
    return _collect(path, column, rows, notices)


def _read_table(path: Path, column: str | None) -> Read:
    table = read_table(path, _kind(path) == ".tsv")
    if not table.rows:
        raise _no_samples(path)
    names = list(table.names)
    first = dict(zip(names, table.rows[0], strict=True))
    column = pick_column(path, column, names, list(table.texts), {k: v for k, v in first.items() if v[:2] == "[{"})
    fields = [(i, name) for i, name in enumerate(names) if name in columns_read(column, names)]
    rows = ((f"row {n}", {name: row[i] for i, name in fields}) for n, row in enumerate(table.rows, 1))
    return _collect(path, column, rows, table.notices)


def _read_parquet(path: Path, column: str | None) -> Read:
    import pyarrow.parquet as pq

    with _arrow(path), pq.ParquetFile(path) as file:
        first: dict[str, Any] = next((b.to_pylist()[0] for b in file.iter_batches(1) if b.num_rows), {})
        column, fields = _arrow_fields(path, column, file.schema_arrow, first)
        groups = (file.read_row_group(i, columns=fields).to_pylist() for i in range(file.num_row_groups))
        rows = (row for group in groups for row in group)
        return _collect(path, column, ((f"row {n}", row) for n, row in enumerate(rows, 1)))


def _read_arrow(path: Path, column: str | None) -> Read:
    table = _arrow_table(path)
    column, fields = _arrow_fields(path, column, table.schema, (table.slice(0, 1).to_pylist() or [{}])[0])
    rows = table.select(fields).to_pylist()
    return _collect(path, column, ((f"row {n}", row) for n, row in enumerate(rows, 1)))


def _arrow_fields(path: Path, column: str | None, schema: Any, first: dict[str, Any]) -> tuple[str, list[str]]:
    """(the column to read, the fields it takes) of a schema and its first row."""
    names = list(schema.names)
    column = pick_column(path, column, names, _strings(schema), _lists(first))
    return column, columns_read(column, names)


def _arrow_table(path: Path) -> Any:
    """A table as the data set library saves it: a stream of record batches, or a file of them."""
    import pyarrow as pa

    with _arrow(path), path.open("rb") as file:
        try:
            return pa.ipc.open_stream(file).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(path).read_all()


@contextmanager
def _arrow(path: Path) -> Iterator[None]:
    """What pyarrow says about a broken file as DataError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{path}: {error}", f"a whole {path.suffix} file", "correct or export it again") from error


READERS: dict[str, Callable[[Path, str | None], Read]] = {
    ".txt": _read_txt,
    ".md": _read_markdown,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def _names(rows: Records) -> list[str]:
    """The fields of the first records: one that is empty may lack some."""
    return list(dict.fromkeys(name for _, record in rows[:LOOKED_AT] for name in record))


def _lists(record: dict[str, Any]) -> dict[str, Any]:
    """The fields that hold a list, or one written into a string."""
    return {k: v for k, v in record.items() if isinstance(v, list) or (isinstance(v, str) and v[:2] == "[{")}


def _strings(schema: Any) -> list[str]:
    """The names of the string fields of an arrow schema."""
    import pyarrow.types as pt

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pt.is_dictionary(kind) else kind
        return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))

    return [field.name for field in schema if is_text(field.type)]


def _collect(path: Path, column: str, rows: Iterable[tuple[str, dict[str, Any]]], notices: Iterable[str] = ()) -> Read:
    values: list[Value] = []
    empty, left = 0, Counter[str]()
    for where, record in rows:
        value = value_of(path, where, column, record, left)
        if value is None:
            empty += 1
        else:
            values.append(value)
    return Read(tuple(values), column, empty, (*notices, *left_out(path, left)))


def _no_samples(path: Path) -> DataError:
    return DataError(f"{path}: empty", "at least 2 samples to align on and 2 to hold out", "give a file with text")
