"""Reading, splitting and rendering text. Reference: the files written here, and properties of a split."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_tokenizer
from tmerge_tui.engine.data.corpus import Corpus, Sample, hash_samples, missing_template, read_corpus, render
from tmerge_tui.engine.data.text_files import read_file
from tmerge_tui.errors import DataError
from tmerge_tui.recipe import Calibration

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
TEXTS = [f"verse {i} of the book" for i in range(20)]


def corpus(path: Path, seed: int = 0, **options: Any) -> Corpus:
    return read_corpus(Calibration(path=str(path), **{"samples": 8, "holdout": 4, **options}), seed)


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def write(folder: Path, suffix: str, texts: list[str]) -> Path:
    path = folder / f"text{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(texts), encoding="utf-8")
    elif suffix == ".jsonl":
        jsonl(path, [{"id": i, "text": t} for i, t in enumerate(texts)])
    elif suffix == ".csv":
        rows = ["id,body"] + [f'{i},"{t}"' for i, t in enumerate(texts)]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    else:
        table = pa.table({"id": list(range(len(texts))), "body": texts})
        pq.write_table(table, path, row_group_size=3)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_texts_it_holds(tmp_path: Path, suffix: str) -> None:
    texts = ["plain", "comma, quote ' and ümlaut ก", *TEXTS]
    path = write(tmp_path, suffix, texts)
    read = read_file(path, None)
    assert list(read.values) == texts
    assert read.column == {".txt": "line", ".jsonl": "text"}.get(suffix, "body")


def test_csv_cells_may_hold_newlines_and_text_that_looks_like_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"two\nlines"\n2,007\n3,NA\n', encoding="utf-8")
    assert read_file(path, None).values == ("two\nlines", "007", "NA")


def test_txt_keeps_leading_spaces_and_unicode_separators_and_drops_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff  first\u2028still first\r\n \t \nsecond".encode())
    assert read_file(path, None).values == ("  first\u2028still first", "second")


def test_messages_of_both_spellings_are_the_same_samples(tmp_path: Path) -> None:
    ours = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    theirs = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "yes"}]
    first = read_file(jsonl(tmp_path / "a.jsonl", [{"messages": ours}]), None)
    second = read_file(jsonl(tmp_path / "b.jsonl", [{"conversations": theirs}]), None)
    pq.write_table(pa.table({"conversations": [theirs]}), tmp_path / "c.parquet")
    third = read_file(tmp_path / "c.parquet", None)
    assert first.values == second.values == third.values == (tuple(ours),)
    assert (first.column, second.column) == ("messages", "conversations")


def test_two_columns_become_a_conversation(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "why", "response": "because"}] * 2)
    value = read_file(path, "prompt+response").values[0]
    assert value == ({"role": "user", "content": "why"}, {"role": "assistant", "content": "because"})
    assert read_file(path, None).values[0] == value
    path = jsonl(tmp_path / "b.jsonl", [{"why": "why", "because": "because"}] * 2)
    assert read_file(path, "why+because").values[0] == value
    with pytest.raises(DataError, match="why, because"):
        read_file(path, None)


BROKEN = {
    "empty.txt": (b"", "empty"),
    "blank.txt": (b"\n  \n\n", "empty"),
    "blank.jsonl": (b"\n\n", "empty"),
    "bytes.txt": (bytes(range(256)) * 8, "not UTF-8"),
    "bytes.csv": (b"text\n" + bytes(range(256)) * 8, "not UTF-8"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "not a whole gzip file"),
    "numbers.json": (b"[1, 2]", "item 1: found 1"),
    "cut.json": (b'[{"text": "a"}, {"te', "not valid JSON"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": "b"\n', "line 2: not valid JSON"),
    "list.jsonl": (b'{"text": "a"}\n["b"]\n', r'line 2: found \["b"\]'),
    "hole.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', "line 2: no field text; it has body"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 7}\n', "line 2: field text holds 7"),
    "roleless.jsonl": (b'{"messages": [{"content": "a"}]}\n', "line 1: field messages holds"),
    "odd.jsonl": (b'{"messages": [{"role": "user", "content": [1, 2]}]}\n', "line 1: field messages"),
    "ragged.csv": (b"text,id\na,1\nb\n", "row 2: 1 fields where the first row has 2"),
    "not.parquet": (b"certainly not parquet", "not.parquet"),
    "unclear.csv": (b"a,b\nx,y\n", "fields a, b"),
    "table.xlsx": (b"x", "suffix .xlsx"),
    "nothing": (b"x", "no suffix"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_file(tmp_path / name, None)
    assert str(tmp_path / name) in caught.value.found
    assert caught.value.expected and caught.value.hint


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        corpus(tmp_path / "absent.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="no text in it"):
        corpus(tmp_path / "folder.txt")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_field_that_is_not_there_lists_the_fields(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=r"no field summary\n.*one of: id, (text|body)"):
        corpus(write(tmp_path, suffix, TEXTS), column="summary")


def test_one_line_and_a_greedy_hold_out_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 distinct sample\n.*at least 2"):
        corpus(write(tmp_path, ".txt", ["only one"]))
    with pytest.raises(DataError, match=r"20 distinct samples, and the hold-out takes 19\n.*21") as caught:
        corpus(write(tmp_path, ".txt", TEXTS), holdout=19)
    assert "calibration.holdout to 5" in caught.value.hint
    assert len(corpus(write(tmp_path, ".txt", TEXTS), holdout=18).calibration) == 2


def test_what_is_short_empty_or_repeated_is_said_with_numbers(tmp_path: Path) -> None:
    records = [{"text": t} for t in [*TEXTS, TEXTS[3], TEXTS[4], "", "  "]] + [{"text": None}]
    found = corpus(jsonl(tmp_path / "a.jsonl", records), samples=100)
    assert len(found.calibration) == 16 and len(found.holdout) == 4
    said = "\n".join(found.warnings)
    assert "3 empty samples left out" in said
    assert "2 duplicate samples left out" in said
    assert "calibration is 16 samples: 100 were asked for" in said
    assert corpus(write(tmp_path, ".txt", TEXTS)).warnings == ()
    assert "column text is not used" in corpus(tmp_path / "text.txt", column="text").warnings[0]


def test_a_hold_out_file_is_never_aligned_on(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", TEXTS)
    held = jsonl(tmp_path / "held.jsonl", [{"text": t} for t in [*TEXTS[:6], "another"]])
    found = corpus(path, holdout_path=str(held), samples=20)
    assert {s.text for s in found.calibration} == set(TEXTS[6:])
    assert len(found.holdout) == 4 and {s.text for s in found.holdout} <= {*TEXTS[:6], "another"}
    assert any("6 calibration samples are also in the hold-out file" in w for w in found.warnings)
    with pytest.raises(DataError, match="0 distinct samples"):
        corpus(path, holdout_path=str(path))


def test_one_seed_is_one_split(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", TEXTS)
    first, again, other = corpus(path, 3), corpus(path, 3), corpus(path, 4)
    assert first == again
    assert first.sha256 != other.sha256 and first.holdout_sha256 != other.holdout_sha256
    assert first.sha256 == hash_samples(first.calibration) != hash_samples(first.calibration[::-1])
    assert corpus(path, 3, samples=5).holdout == first.holdout
    # recorded: a split must not change between versions or machines
    assert [s.text.split()[1] for s in first.holdout if s.text] == RECORDED


RECORDED = ["8", "3", "6", "5"]


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text("abc ", min_size=1, max_size=4).filter(str.strip), min_size=8, max_size=30, unique=True),
    repeats=st.lists(st.integers(0, 7), max_size=10),
    seed=st.integers(0, 5),
)
def test_split_is_disjoint_complete_and_blind_to_duplicates(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], repeats: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    once = jsonl(folder / "once.jsonl", [{"text": t} for t in texts])
    twice = jsonl(folder / "twice.jsonl", [{"text": t} for t in texts + [texts[i] for i in repeats]])
    a, b = corpus(once, seed, samples=100), corpus(twice, seed, samples=100)
    aligned, held = [s.text for s in a.calibration], [s.text for s in a.holdout]
    assert sorted(aligned + held) == sorted(texts)
    assert (a.calibration, a.holdout, a.sha256) == (b.calibration, b.holdout, b.sha256)


CONVERSATION = Sample(messages=({"role": "user", "content": " who "}, {"role": "assistant", "content": "me"}))


def test_messages_use_the_models_own_template_or_are_joined() -> None:
    tokenizer = make_tokenizer()
    joined = "user:  who \nassistant: me"
    assert CONVERSATION.plain == render(CONVERSATION, tokenizer, "auto") == joined
    assert missing_template([CONVERSATION], tokenizer, "auto")
    tokenizer.chat_template = CHAT
    assert render(CONVERSATION, tokenizer, "auto") == "<|user|>who\n<|assistant|>me\n"
    assert render(CONVERSATION, tokenizer, "off") == joined
    assert render(Sample(text=" as it is "), tokenizer, "auto") == " as it is "
    assert not missing_template([CONVERSATION], tokenizer, "auto")
    assert not missing_template([CONVERSATION], make_tokenizer(), "off")


def test_a_template_that_prints_the_date_reads_the_same_tomorrow() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}"
    )
    assert render(CONVERSATION, tokenizer, "auto") == "26 Jul 2024"


def test_a_template_that_refuses_a_role_is_an_error_with_a_way_out() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    with pytest.raises(DataError, match=r"system, user.*no system role") as caught:
        render(
            Sample(messages=({"role": "system", "content": "a"}, {"role": "user", "content": "b"})), tokenizer, "auto"
        )
    assert "chat_template: off" in caught.value.hint


def test_validation_is_drawn_behind_the_calibration_samples(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", [f"text {i}" for i in range(40)])
    asked = Calibration(path=str(path), samples=20, holdout=10, validation=6)
    without, with_it = (read_corpus(asked, 3, validation) for validation in (False, True))
    assert (with_it.calibration, with_it.holdout) == (without.calibration, without.holdout)
    assert without.validation == () and len(with_it.validation) == 6
    splits = [*with_it.calibration, *with_it.holdout, *with_it.validation]
    assert len({sample.identity for sample in splits}) == 36


def test_a_short_file_gives_fewer_calibration_samples_for_validation(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", [f"text {i}" for i in range(20)])
    corpus = read_corpus(Calibration(path=str(path), samples=20, holdout=5, validation=6), 0, True)
    assert (len(corpus.calibration), len(corpus.holdout), len(corpus.validation)) == (9, 5, 6)
    assert any("calibration is 9 samples: 20 were asked for" in warning for warning in corpus.warnings)
    short = read_corpus(Calibration(path=str(path), samples=20, holdout=5, validation=14), 0, True)
    assert (len(short.calibration), len(short.validation)) == (12, 3)
    assert any("validation is 3 samples: 14 were asked for" in warning for warning in short.warnings)
