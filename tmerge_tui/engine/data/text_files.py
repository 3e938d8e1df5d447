"""Text files as people have them: .txt, .md, .json, .jsonl, .csv, .tsv (each also packed as .gz), .parquet, and folders
of such. One value a sample: a text, or a tuple of chat messages (see `records`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.engine.data.decoding import read_text
from tmerge_tui.engine.data.records import Value, fields_of, left_out, pick_column, shown, value_of
from tmerge_tui.errors import DataError
from tmerge_tui.files import parse_json

CSV_BLOCK = 16 << 20  # bytes; no row may be longer
DELIMITERS = ",;\t|"
LONG = 60  # characters: a header is no sentence

Records = list[tuple[str, dict[str, Any]]]  # (where: "line 3", what)


@dataclass(frozen=True)
class Read:
    """The samples of one file in file order; `empty` counts the missing and blank ones, which are not among them."""

    values: tuple[Value, ...]
    column: str
    empty: int = 0
    warnings: tuple[str, ...] = ()


def read_file(path: Path, column: str | None) -> Read:
    """Reads one field of a file. `column` None: text, messages, conversations, a known pair, or the only string field.

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
    """The fields one may choose from: of the first record, the header or the schema; none for plain text.

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
        return _table(path)[1]
    if kind in (".json", ".jsonl"):
        return list(records(path)[0][0][1])
    return []


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: {error.strerror or error}", "a file that can be read", "check calibration.path")


def records(path: Path) -> tuple[Records, list[str]]:
    """(the objects of a JSON file with where each stands, notices): one a line, an array, or an array inside an object.

    Raises DataError naming the line or item, OSError.
    """
    text, notices = read_text(path)
    whole = text.lstrip()
    found: Records | None = None
    if whole.startswith("[") or (whole.startswith("{") and _kind(path) == ".json"):
        found = _array(path, text)
    if found is None:
        lines = enumerate(text.split("\n"), 1)
        found = [(f"line {n}", _json_object(path, n, line)) for n, line in lines if line.strip()]
    if not found:
        raise _no_samples(path)
    return found, notices


def _kind(path: Path) -> str:
    """The suffix, without that of the packing."""
    name = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return {".ndjson": ".jsonl", ".markdown": ".md", ".text": ".txt"}.get(name.suffix.lower(), name.suffix.lower())


def _reader(path: Path) -> Callable[[Path, str | None], Read]:
    reader = READERS.get(_kind(path))
    if reader is not None:
        if path.stat().st_size == 0:
            raise _no_samples(path)
        return reader
    raise DataError(
        f"{path}: {'suffix ' + path.suffix if path.suffix else 'no suffix'}",
        f"one of {', '.join(READERS)}, or a folder of them",
        "convert the file, or give it the suffix of what it holds",
    )


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and _kind(p) in READERS and not p.name.startswith("."))


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
        if _kind(file) in (".txt", ".md"):
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
    first = rows[0][1]
    column = pick_column(path, column, list(first), [k for k, v in first.items() if isinstance(v, str)])
    return _collect(path, column, rows, notices)


def _array(path: Path, text: str) -> Records | None:
    """The items of a file that is one JSON value; None where it is not, and may be lines."""
    try:
        data = parse_json(text)
    except ValueError as error:
        first = text.lstrip().split("\n", 1)[0]
        if "Extra data" in str(error) or _is_json(first):
            return None
        raise DataError(f"{path}: not valid JSON: {error}", "an array of records", "export it again") from error
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        inside = len(lists) == 1 and not any(name in data for name in ("messages", "conversations"))
        data = lists[0] if inside else [data]
    found = []
    for n, item in enumerate(data, 1):
        if not isinstance(item, (dict, str)):
            raise DataError(
                f"{path}, item {n}: found {shown(item)}",
                "records or texts in one array",
                "correct or remove it",
            )
        found.append((f"item {n}", {"text": item} if isinstance(item, str) else item))
    return found


def _is_json(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(
            f"{path}, line {number}: not valid JSON: {error}", "one JSON object a line", "correct or remove that line"
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"{path}, line {number}: found {shown(record)}",
            'one JSON object a line, such as {"text": "..."}, or one array of them',
            "wrap the value in an object",
        )
    return record


def _table(path: Path) -> tuple[bytes, list[str], Any, list[str]]:
    """(content as UTF-8, names of the fields, pyarrow's options to parse it, notices) of a .csv or .tsv."""
    import pyarrow.csv as pc

    text, notices = read_text(path)
    delimiter = "\t" if _kind(path) == ".tsv" else _delimiter(text)
    header = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    if delimiter != "," and _kind(path) != ".tsv":
        name = {"\t": "tabs", ";": "semicolons"}.get(delimiter, repr(delimiter))
        notices.append(f"{path}: its fields are separated by {name}")
    if _is_data(header):
        names = [f"column{i}" for i in range(1, len(header) + 1)]
        notices.append(f"{path}: no header: its fields are called {', '.join(names)}, and the first line is a sample")
        text = delimiter.join(names) + "\n" + text
        header = names
    return text.encode(), header, pc.ParseOptions(newlines_in_values=True, delimiter=delimiter), notices


def _delimiter(text: str) -> str:
    """The separator that gives the first rows the same number of fields, more than one; a comma when none does."""
    head = text[: 1 << 16]
    for delimiter in DELIMITERS:
        rows = [
            row for _, row in zip(range(20), csv.reader(io.StringIO(head), delimiter=delimiter), strict=False) if row
        ]
        if len(text) > len(head):
            rows = rows[:-1] or rows
        if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            return delimiter
    return ","


def _is_data(header: list[str]) -> bool:
    """Whether the first line of a table is a row and not the names of its fields."""
    sentence = re.compile(r"\S+\s+\S+\s+\S+\s+\S+|[.!?。]$|\n")
    return any(not name.strip() or len(name) > LONG or sentence.search(name.strip()) for name in header) or any(
        re.fullmatch(r"[-+]?\d+([.,]\d+)?", name.strip()) for name in header
    )


def _read_csv(path: Path, column: str | None) -> Read:
    import pyarrow as pa
    import pyarrow.csv as pc

    data, _, parsing, notices = _table(path)
    reading = pc.ReadOptions(block_size=CSV_BLOCK)
    with _arrow(path):
        with pc.open_csv(pa.BufferReader(data), reading, parsing) as stream:
            schema = stream.schema
        column = pick_column(path, column, schema.names, _strings(schema))
        fields = [name for name in fields_of(column, schema.names) if name in schema.names]
        as_text = pc.ConvertOptions(include_columns=fields, column_types={name: pa.string() for name in fields})
        rows = pc.read_csv(pa.BufferReader(data), reading, parsing, as_text).to_pylist()
    return _collect(path, column, ((f"row {n}", row) for n, row in enumerate(rows, 1)), notices)


def _read_parquet(path: Path, column: str | None) -> Read:
    import pyarrow.parquet as pq

    with _arrow(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        column = pick_column(path, column, schema.names, _strings(schema))
        fields = [name for name in fields_of(column, schema.names) if name in schema.names]
        groups = (file.read_row_group(i, columns=fields).to_pylist() for i in range(file.num_row_groups))
        rows = (row for group in groups for row in group)
        return _collect(path, column, ((f"row {n}", row) for n, row in enumerate(rows, 1)))


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
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def _strings(schema: Any) -> list[str]:
    """The names of the string fields of an arrow schema."""
    import pyarrow.types as pt

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pt.is_dictionary(kind) else kind
        return pt.is_string(kind) or pt.is_large_string(kind)

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
