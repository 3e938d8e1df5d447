"""Data as people have them. Every format gives the same samples as the plain one beside it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import LINES
from tmerge_tui.engine.data.corpus import read_corpus
from tmerge_tui.engine.data.text_files import Read, columns_of, read_file
from tmerge_tui.recipe import Calibration

TEXTS = tuple(f"{i} {LINES[i % 6]}" for i in range(12))
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
TALK = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because"}]


def read(tmp_path: Path, name: str, content: str | bytes, column: str | None = None) -> Read:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(path, column)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(delimiter: str, header: bool = True) -> str:
    rows = [f'{i}{delimiter}"{text}"' for i, text in enumerate(TEXTS)]
    return "\n".join([f"id{delimiter}text"] * header + rows) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps(list(TEXTS))),
        ("a.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("a.json", lines(ROWS)),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.jsonl", json.dumps(ROWS, indent=2)),
        ("a.jsonl", "\ufeff" + lines(ROWS).replace("\n", "\r\n")),
        ("a.ndjson", lines(ROWS)),
        ("a.jsonl.gz", gzip.compress(lines(ROWS).encode())),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("a.txt.gz", gzip.compress("\n".join(TEXTS).encode())),
        ("a.csv.gz", gzip.compress(table(",").encode())),
        ("a.md", "\n\n".join(TEXTS)),
        ("a.markdown", "\n \n".join(TEXTS) + "\n\n"),
        ("a.csv", table(",")),
        ("a.csv", table(";")),
        ("a.csv", table("\t")),
        ("a.csv", table("|")),
        ("a.tsv", table("\t")),
        ("a.csv", "text\n" + "\n".join(f'"{text}"' for text in TEXTS)),
        ("a.csv", "\n".join(f'"{text}"' for text in TEXTS)),
    ],
)
def test_every_format_gives_the_same_samples(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read(tmp_path, name, content).values == TEXTS


def test_a_table_without_a_header_says_what_its_fields_are_called(tmp_path: Path) -> None:
    found = read(tmp_path, "a.csv", table(";", header=False), "column2")
    assert found.values == TEXTS
    assert any("no header: its fields are called column1, column2" in told for told in found.warnings)
    assert any("separated by semicolons" in told for told in found.warnings)
    assert columns_of(tmp_path / "a.csv") == ["column1", "column2"]
    named = read(tmp_path, "b.csv", "Frage;Antwort\nwarum;darum\nwer;der\n", "Frage+Antwort")
    assert len(named.values) == 2 and not any("no header:" in told for told in named.warnings)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16", "größe über alles"),
        ("utf-16-le", "größe über alles, und mehr"),
        ("utf-32", "größe"),
        ("cp1252", "Die Straße über den Fluß führt nach Süden, und „mehr“ – für 5 €"),
        ("cp1251", "Привет, мир! Это обычный русский текст, который написан для проверки."),
        ("shift_jis", "東京の空は青い。とても良い天気です。"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, text: str) -> None:
    texts = tuple(f"{i} {text}" for i in range(30))
    for name, content in (("a.txt", "\n".join(texts)), ("a.csv", "text\n" + "\n".join(f'"{t}"' for t in texts))):
        found = read(tmp_path, name, content.encode(encoding))
        assert found.values == texts
        guessed = any("was found by its content" in told for told in found.warnings)
        assert guessed == (encoding not in ("utf-16", "utf-32"))


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        ([{"instruction": "why", "input": "", "output": "because"}], TALK),
        ([{"instruction": "why", "output": "because"}], TALK),
        ([{"prompt": "why", "completion": "because"}], TALK),
        ([{"question": "why", "answer": "because", "id": "7"}], TALK),
        ([{"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "because"}]}], TALK),
        ([{"messages": json.dumps(TALK)}], TALK),
        ([{"messages": [{"role": "user", "content": [{"type": "text", "text": "why"}]}, TALK[1]]}], TALK),
        (
            [{"instruction": "translate", "input": "a", "output": "b"}],
            [{"role": "user", "content": "translate\n\na"}, {"role": "assistant", "content": "b"}],
        ),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_conversations(tmp_path: Path, rows: list[Any], value: list[dict[str, str]], kind: str) -> None:
    if kind == "parquet":
        if "content': [" in str(rows):
            rows = [{"messages": json.dumps(rows[0]["messages"])}]  # a column of lists and texts is none of Arrow's
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(rows * 3), path)
        found = read_file(path, None)
    else:
        found = read(tmp_path, f"a.{kind}", lines(rows * 3) if kind == "jsonl" else json.dumps(rows * 3))
    assert found.values == (tuple(value),) * 3 and not found.warnings


def test_what_of_messages_is_no_text_is_left_out_and_counted(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    asked = {"role": "user", "content": [{"type": "text", "text": "what"}, image, {"type": "text", "text": "is it"}]}
    rows = [{"messages": [asked, called, {"role": "tool", "content": "7"}, TALK[1]]}] * 4
    found = read(tmp_path, "a.jsonl", lines([*rows, {"messages": [called]}]))
    roles = [message["role"] for message in found.values[0] if isinstance(message, dict)]
    assert roles == ["user", "tool", "assistant"] and found.empty == 1
    assert isinstance(found.values[0], tuple) and found.values[0][0]["content"] == "what\nis it"
    assert sorted(told.split(": ")[1] for told in found.warnings) == [
        "4 parts of messages that are no text left out", "5 tool calls without text left out",
    ]  # fmt: skip


def test_text_that_only_looks_like_messages_stays_text(tmp_path: Path) -> None:
    texts = ['[{"a": 1}]', "[{broken", "[{}]"]
    assert read(tmp_path, "a.jsonl", lines([{"text": text} for text in texts])).values == tuple(texts)


def test_a_folder_of_texts(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    read(folder, "one.txt", "first line\nsecond line\n")
    read(folder, "sub.md", "# title\n\nparagraph")
    (folder / "deep").mkdir()
    read(folder / "deep", "more.jsonl", lines(ROWS[:2]))
    (folder / "photo.png").write_bytes(b"x")
    (folder / ".hidden.txt").write_text("no")
    found = read_file(folder, None)
    assert found.values == (*TEXTS[:2], "first line\nsecond line", "# title\n\nparagraph")
    corpus = read_corpus(Calibration(path=str(folder), samples=2, holdout=2), 0)
    assert len(corpus.calibration) == len(corpus.holdout) == 2
