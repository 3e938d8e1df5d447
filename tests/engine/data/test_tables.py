"""Tables as spreadsheets, databases and people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmerge_tui.engine.data.text_files import Read, columns_of, read_file
from tmerge_tui.errors import DataError

TEXTS = ("the river bends east, slowly", "two roads meet; nobody asks", "one lamp\tburns")


def read(tmp_path: Path, name: str, content: str, column: str | None = None) -> Read:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    return read_file(tmp_path / name, column)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'sep=;\r\nid;text\r\n1;{0}\r\n2;"{1}"\r\n3;{2}\r\n'),
        ("a.csv", 'id, text\n1, "{0}"\n2, "{1}"\n3, "{2}"\n'),
        ("a.csv", ',text\n0,"{0}"\n1,"{1}"\n2,"{2}"\n'),  # as pandas writes its index
        ("a.csv", 'id,text,\n0,"{0}",\n1,"{1}",\n2,"{2}",\n'),
        ("a.csv", '\n\nID,Text\n0,"{0}"\n1,"{1}"\n2,"{2}"\n'),
        ("a.csv", "id,text\n1,'{0}'\n2,'{1}'\n3,'{2}'\n"),
        ("a.csv", "text\n{0}\n{1}\n{2}\n"),  # separators without quotes, in the only field
        ("a.csv", '"{0}"\n"{1}"\n"{2}"\n'),
        ("a.tsv", 'id,text\n0,"{0}"\n1,"{1}"\n2,"{2}"\n'),
        ("a.csv", 'text,text\n"{0}",x\n"{1}",x\n"{2}",x\n'),
    ],
)
def test_every_table_gives_the_same_samples(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path, name, content.format(*TEXTS)).values == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "texts", "told"),
    [
        ("a.csv", 'id,text\n1,"he said \\"hi\\", ok"\n2,"b"\n', ('he said "hi", ok', "b"), "follow a backslash"),
        ("a.csv", 'id,text\n1,"never closed\n2,b\n', ('"never closed', "b"), "not closed"),
        ("a.tsv", 'id\ttext\n1\t"he said\n2\t"she said\n', ('"he said', '"she said'), "not closed"),
        ("a.tsv", 'id\ttext\n1\t"No" was said\n2\tb\n', ('"No" was said', "b"), "as they stand"),
        ("a.csv", 'id,text\n1,a pipe of 5" length\n2,b\n', ('a pipe of 5" length', "b"), ""),
    ],
)
def test_quotes(tmp_path: Path, name: str, content: str, texts: tuple[str, ...], told: str) -> None:
    found = read(tmp_path, name, content)
    assert found.values == texts
    assert [told in warning for warning in found.warnings] == [True] * bool(told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("id,text\n1,one, two\n", "row 1: 3 fields where the first row has 2, separated by commas"),
        ("id;text;note\n1;one;\n2;two\n", "row 2: 2 fields where the first row has 3, separated by semicolons"),
        ("# made by hand\nid,text\n1,one\n", "row 1: 2 fields where the first row has 1"),
    ],
)
def test_a_row_of_another_length_is_named(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read(tmp_path, "a.csv", content)


def test_fields_without_a_name_and_numbers_are_not_the_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "n,day,body\n1,2020-01-01,x\n2.5,2020-01-02,7\n").values == ("x", "7")
    assert columns_of(tmp_path / "a.csv") == ["n", "day", "body"]
    assert read(tmp_path, "b.csv", "a,,a\n1,x y,2\n3,z,4\n", "column2").values == ("x y", "z")
    assert columns_of(tmp_path / "b.csv") == ["a", "column2", "a_3"]
