"""Data as people have them. Every format gives the same samples as the plain one beside it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.tiny import LINES
from tmerge_tui.engine.data.corpus import read_corpus
from tmerge_tui.engine.data.text_files import Read, columns_of, read_file
from tmerge_tui.errors import DataError
from tmerge_tui.recipe import Calibration
from tmerge_tui.run_folder import RunDir

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


def zstandard(text: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(text.encode())
    return bytes(sink.getvalue())


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
        ("a.jsonl", gzip.compress(lines(ROWS).encode())),
        ("a.jsonl.gz", lines(ROWS)),
        ("a.jsonl.bz2", bz2.compress(lines(ROWS).encode())),
        ("a.txt.xz", lzma.compress("\n".join(TEXTS).encode())),
        ("a.jsonl.zst", zstandard(lines(ROWS))),
        ("a.json", ",\n".join(map(json.dumps, ROWS)) + ",\n"),
        ("a.json", "[\n" + ",\n".join(map(json.dumps, ROWS)) + ",\n]\n"),
        ("a.json", json.dumps({"data": {"train": ROWS}})),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS[:2]})),
        ("a.json", json.dumps({"id": list(range(12)), "text": TEXTS})),
        ("a.json", json.dumps({"text": {str(i): t for i, t in enumerate(TEXTS)}})),
        ("a.json", json.dumps({str(i): row for i, row in enumerate(ROWS)})),
        ("a.jsonl", "\n".join(map(json.dumps, TEXTS))),
        ("a.jsonl", lines([{"Text": text, "meta": {"a": 1}} for text in TEXTS])),
        ("a.jsonl", lines([{"raw": text, "tags": ["a"], "meta": {"a": 1}} for text in TEXTS])),
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
    ("rows", "value"),
    [
        ([{"instruction": "why", "input": "", "output": "because"}], TALK),
        ([{"instruction": "why", "output": "because"}], TALK),
        ([{"prompt": "why", "completion": "because"}], TALK),
        ([{"question": "why", "answer": "because", "id": "7"}], TALK),
        ([{"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "because"}]}], TALK),
        ([{"messages": json.dumps(TALK)}], TALK),
        ([{"messages": str(TALK)}], TALK),
        ([{"messages": str(TALK).replace("}, {", "}\n {")}], TALK),
        ([{"conversation": TALK, "id": "7"}], TALK),
        ([{"id": "a", "items": [{"from": "human", "value": "why"}, {"from": "chatgpt", "value": "because"}]}], TALK),
        ([{"conversations": [{"from": "Human", "text": "why"}, {"from": "model", "text": "because"}]}], TALK),
        ([{"query": "why", "response": "because"}], TALK),
        ([{"instruction": "why", "context": "", "response": "because", "category": "qa"}], TALK),
        ([{"prompt": TALK[:1], "completion": TALK[1:]}], TALK),
        ([{"system": "be brief", "conversations": TALK}], [{"role": "system", "content": "be brief"}, *TALK]),
        ([{"system": "", "messages": TALK}], TALK),
        (
            [{"instruction": "translate", "context": "a", "response": "b"}],
            [{"role": "user", "content": "translate\n\na"}, {"role": "assistant", "content": "b"}],
        ),
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


def test_messages_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    silent: list[Any] = [
        {"role": "assistant", "content": None}, {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "tool_calls": []}, {"from": "gpt", "value": None},
    ]  # fmt: skip
    rows = [{"messages": [*TALK, message]} for message in silent]
    for name, content in (("a.jsonl", lines(rows)), ("a.json", json.dumps(rows))):
        found = read(tmp_path, name, content)
        assert found.values == (tuple(TALK),) * 4
        assert [told.split(": ")[1] for told in found.warnings] == ["4 messages without text left out"]


@pytest.mark.parametrize(
    "content",
    [
        ["why"], [{"text": "why"}], [{"type": "text", "content": "why"}], {"content_type": "text", "parts": ["why"]},
        [{"type": "input_text", "text": "why"}, {"type": "refusal", "refusal": "no"}],
    ],
)  # fmt: skip
def test_parts_as_they_are_written(tmp_path: Path, content: Any) -> None:
    (value,) = read(tmp_path, "a.jsonl", lines([{"messages": [{"role": "user", "content": content}, TALK[1]]}])).values
    assert value == tuple(TALK)


def test_records_without_an_answer_or_a_text_are_empty_ones(tmp_path: Path) -> None:
    pairs = [{"instruction": "why", "input": None, "output": "because"}, {"instruction": "why", "output": None}]
    found = read(tmp_path, "a.jsonl", lines(pairs))
    assert found.values == (tuple(TALK),) and found.empty == 1
    found = read(tmp_path, "b.jsonl", '{"text": "a"}\n{"text": NaN}\n{"text": null}\n')
    assert found.values == ("a",) and found.empty == 2


def test_a_field_inside_a_field(tmp_path: Path) -> None:
    rows = [{"translation": {"en": text, "de": "x"}} for text in TEXTS]
    assert read(tmp_path, "a.jsonl", lines([*rows, {"translation": None}]), "translation.en").values == TEXTS
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet", "translation.en").values == TEXTS
    body = [{"id": "1", "body": {"messages": TALK}}] * 3
    assert read(tmp_path, "b.jsonl", lines(body), "body.messages").values == (tuple(TALK),) * 3


def test_a_title_beside_records_is_not_taken_for_the_text(tmp_path: Path) -> None:
    squad = {"version": "2.0", "data": [{"title": "a", "paragraphs": [{"context": "b", "qas": []}]}] * 3}
    with pytest.raises(DataError, match="fields title, paragraphs"):
        read(tmp_path, "a.json", json.dumps(squad))


def test_a_part_that_is_not_read_is_said(tmp_path: Path) -> None:
    found = read(tmp_path, "a.json", json.dumps({"train": ROWS, "test": ROWS[:2], "version": 1}))
    assert any("its part train is read, and nothing of test, version" in told for told in found.warnings)


def test_what_git_lfs_leaves_is_no_text(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"
    for name in ("a.txt", "a.jsonl", "a.parquet", "a.csv"):
        with pytest.raises(DataError, match="a pointer of git-lfs"):
            read(tmp_path, name, pointer)
    read(tmp_path / "texts", "a.txt", "one")
    (tmp_path / "texts" / "b.txt").write_text(pointer)
    with pytest.raises(DataError, match="a pointer of git-lfs"):
        read_file(tmp_path / "texts", None)


def test_a_folder_of_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "cloned"
    read(folder, "README.md", "---\nlicense: mit\n---\n# card")
    for name in (
        ".git/a.txt",
        "data/.ipynb_checkpoints/a.jsonl",
        "__MACOSX/data/a.jsonl",
        "data/~$a.txt",
        "data/b.jsonl",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "data" / "a.jsonl").write_text(lines(ROWS))
    (folder / ".git" / "a.txt").write_text("hidden")
    found = read_file(folder, None)
    assert found.values == TEXTS and found.empty == 1 and columns_of(folder) == ["id", "text"]
    RunDir.create(folder / "runs" / "first").events.write_text(lines(ROWS))
    assert read_file(folder, None).values == TEXTS
    saved = tmp_path / "saved"
    Dataset.from_list(ROWS).save_to_disk(str(saved))
    assert read_file(saved, None).values == TEXTS and columns_of(saved) == ["id", "text"]
