"""Mutated data files of every kind: a clear error, or samples that are text or messages."""

from __future__ import annotations

import functools
import gzip
import io
import json
from pathlib import Path
from random import Random
from typing import Any

from tests.soak.edits import edited, edited_bytes, paths, propose_bytes, propose_structure
from tests.soak.judge import Campaign, Edit
from tmerge_tui.engine.data.text_files import columns_of, read_file

ROWS: list[dict[str, Any]] = [
    {"text": "Two rivers meet, é中𝕏.", "label": 1, "score": 0.5},
    {"text": 'She said "no", and\nleft.', "label": 2, "score": None},
    {"text": "", "label": 3, "score": -1.0},
    {"text": "The last one", "label": 4, "score": 2.0},
]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "And?"}]}, {"role": "tool", "content": None}]},
    {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
]
KINDS = (".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".txt.gz", "")
BOMBS = ("zeros", "many members", "deep", "wide", "long line", "folder", "link", "big number")


@functools.cache
def bases() -> dict[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = "\n".join(str(row["text"]) for row in ROWS).encode()
    table = "text,label\n" + "\n".join(json.dumps(row["text"], ensure_ascii=False) + f",{row['label']}" for row in ROWS)
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    return {
        ".txt": lines, ".md": lines.replace(b"\n", b"\n\n"), ".csv": table.encode(), "": lines,
        ".tsv": table.replace(",", "\t").encode(), ".parquet": parquet.getvalue(), ".txt.gz": gzip.compress(lines),
    }  # fmt: skip


def propose(dice: Random) -> list[Edit]:
    roll = dice.random()
    if roll < 0.04:
        return [("bomb", dice.choice(BOMBS))]
    kind = dice.choice(KINDS)
    first: Edit = ("kind", kind, dice.choice(("rows", "chats")), dice.choice((None, None, "text", "label", "a+b", "")))
    if kind.startswith(".json") and roll < 0.6:
        places = list(paths(CHATS if first[2] == "chats" else ROWS))
        return [first, *(("value", edit) for edit in propose_structure(dice, places, 3))]
    return [first, *(("bytes", edit) for edit in propose_bytes(dice, 4))]


def attempt(edits: list[Edit], folder: Path) -> None:
    column = None
    if not edits or edits[0][0] not in ("kind", "bomb"):
        edits = [("kind", ".jsonl", "rows", None), *edits]
    if edits[0][0] == "bomb":
        path = _bomb(edits[0][1], folder)
    else:
        _, kind, rows, column = edits[0]
        path = folder / f"data{kind}"
        path.write_bytes(_content(kind, rows, edits))
    columns_of(path)
    read = read_file(path, column)
    assert read.values and all(
        isinstance(value, str) or all(set(m) >= {"role", "content"} and isinstance(m["content"], str) for m in value)
        for value in read.values
    ), "a sample that is neither text nor messages"


def _content(kind: str, rows: str, edits: list[Edit]) -> bytes:
    raw = bases().get(kind)
    if raw is None:
        data = edited(CHATS if rows == "chats" else ROWS, [edit[1] for edit in edits if edit[0] == "value"])
        items = data if isinstance(data, list) else [data]
        try:
            text = json.dumps(items) if kind == ".json" else "\n".join(json.dumps(item) for item in items)
        except RecursionError:
            text = '{"text": ' + "[" * 30000
        raw = text.encode("utf-8", "surrogatepass")
        raw = gzip.compress(raw) if kind.endswith(".gz") else raw
    return edited_bytes(raw, [edit[1] for edit in edits if edit[0] == "bytes"])


def _bomb(what: str, folder: Path) -> Path:
    file = folder / "data.jsonl"
    if what == "zeros":
        file = folder / "data.txt.gz"
        with gzip.open(file, "wb", compresslevel=1) as packed:
            for _ in range(1500):
                packed.write(b"\0" * (1 << 20))
    elif what == "many members":
        file = folder / "data.txt.gz"
        file.write_bytes(gzip.compress(b"line\n") * 20000)
    elif what == "deep":
        file.write_text('{"text": ' + "[" * 200_000 + "]" * 200_000 + "}")
    elif what == "wide":
        file.write_text(json.dumps({f"c{i}": i for i in range(100_000)}))
    elif what == "long line":
        file.write_text(json.dumps({"text": "x" * 30_000_000}) + "\n" + json.dumps({"text": "y"}))
    elif what == "big number":
        file.write_text('{"text": ' + "9" * 100_000 + "}")
    elif what == "link":
        file.symlink_to("data.jsonl")
    else:
        (folder / "data").mkdir()
        for number in range(50):
            (folder / "data" / f"{number}.txt").write_text("x" * number)
        (folder / "data" / "again").symlink_to(folder / "data")
        return folder / "data"
    return file


TEXTS = Campaign("data files", 2_000, propose, attempt)
