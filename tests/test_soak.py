"""The smallest inputs of what `make soak` has found, each as a clear error; and the soak itself finds a fault.

References: the safetensors library for headers, transformers for chat templates.
"""

from __future__ import annotations

import gzip
import json
import struct
import time
from pathlib import Path
from random import Random

import pytest

from tests.soak import tokenizers
from tests.soak.edits import NASTY, edited, edited_bytes, paths, propose_bytes, propose_structure
from tests.soak.judge import Campaign, run_campaign
from tests.soak.tokenizers import ENDLESS, ESCAPES, MESSAGES, PLAIN
from tmerge_tui.engine.data import packing
from tmerge_tui.engine.data.corpus import Sample, render
from tmerge_tui.engine.data.text_files import columns_of, read_file
from tmerge_tui.errors import CheckError, DataError, ModelError, RecipeError, TmergeError
from tmerge_tui.models.header import read_header
from tmerge_tui.recipe import parse_recipe

GOOD = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]},
}


def header(folder: Path, head: object, size: int = 12) -> Path:
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))
    return file


@pytest.mark.parametrize(
    "head",
    [
        {**GOOD, "a": {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 8]}},
        {**GOOD, "a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}},
        {**GOOD, "a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
        {**GOOD, "a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},  # beside b: overlap
        {**GOOD, "__metadata__": [[]]},
        {**GOOD, "__metadata__": {"a": 1}},
        {"b": GOOD["b"]},  # a hole at the beginning
        b'{"a":' * 20000,
    ],
    ids=str,
)
def test_headers_that_the_library_refuses(head: object, tmp_path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    file = header(tmp_path, head)
    with pytest.raises(SafetensorError), safe_open(file, "pt"):
        pass
    with pytest.raises(ModelError, match="whole safetensors file"):
        read_header(file)
    assert len(read_header(header(tmp_path, GOOD)).tensors) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 3000, "nested too deep"),
        ("a: &a [x, x]\nb: &b [" + "*a, " * 9000 + "]\nc: [" + "*b, " * 9 + "]\n", "more than 100,000 values"),
        ("source: &x [*x]\n", "holds itself"),
        ("a" * 2_000_000, "more than 1,000,000"),
    ],
    ids=["deep", "aliases", "itself", "long"],
)
def test_recipes_without_measure(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_recipe(text)


def test_an_error_is_no_longer_than_one_can_read() -> None:
    with pytest.raises(RecipeError) as found:
        parse_recipe(f"source: a/b\ntarget: a/c\noutput: x\nfusion: {{layers: {[[0]] * 9000}}}\n")
    assert len(str(found.value)) < 20_000 and "more" in str(found.value) and len(found.value.problems) > 8000
    assert len(str(DataError("x" * 10**6, "y" * 10**6, "z" * 10**6))) < 10_000
    few = CheckError(["one", "two\nlines"])
    assert str(few) == "check: 2 problems\n  - one\n  - two\n  lines"


def test_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + b"\x15" * 50 + b"PAR1")
    (tmp_path / "deep.jsonl").write_text('{"text": ' + "[" * 200_000)
    (tmp_path / "wide.jsonl").write_text(json.dumps({f"c{i}": i for i in range(100_000)}))
    monkeypatch.setattr(packing, "FEW", 1 << 20)
    (tmp_path / "zeros.txt.gz").write_bytes(gzip.compress(b"\0" * (4 << 20)))
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError) as found:
            columns_of(file)
            read_file(file, None)
        assert len(str(found.value)) < 10_000, file


@pytest.mark.parametrize("number", range(len(ENDLESS)))
def test_templates_that_do_not_end(number: int) -> None:
    tokenizer = tokenizers.whole()
    tokenizer.chat_template = ENDLESS[number]
    with pytest.raises(DataError, match="chat template"):
        render(Sample(messages=tuple(MESSAGES)), tokenizer, "auto")


@pytest.mark.parametrize("number", range(len(ESCAPES)))
def test_templates_that_want_out(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizers.whole()
    tokenizer.chat_template = ESCAPES[number]
    try:
        made = render(Sample(messages=tuple(MESSAGES)), tokenizer, "auto")
    except DataError:
        made = ""
    assert "<class" not in made and "root:" not in made and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_a_template_within_its_budget_writes_what_transformers_makes_of_it(number: int) -> None:
    tokenizer = tokenizers.whole()
    tokenizer.chat_template = PLAIN[number]
    made = render(Sample(messages=tuple(MESSAGES)), tokenizer, "auto")
    assert made == tokenizers._reference(PLAIN[number]) and "rivers" in made


def test_edits_are_the_same_for_the_same_seed_and_reach_every_place() -> None:
    value = {"a": [1, {"b": 2}], "c": "x"}
    places = list(paths(value))
    assert places == [("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("c",)]
    assert edited(value, [("put", ("a", 1, "b"), NASTY.index("yes"))]) == {"a": [1, {"b": "yes"}], "c": "x"}
    assert edited(value, [("drop", ("a",)), ("put", ("a", 0), 1)]) == {"c": "x"} and value["a"] == [1, {"b": 2}]
    made = [(propose_structure(Random(7), places), propose_bytes(Random(7))) for _ in range(2)]
    assert made[0] == made[1]
    assert (
        edited_bytes(b"abc", [("flip", 0.99, 0.0, 0)]) == b"abb" and edited_bytes(b"abc", [("cut", 0.5, 0, 0)]) == b"a"
    )


def test_the_soak_finds_faults_and_makes_them_small(tmp_path: Path) -> None:
    def propose(dice: Random) -> list[tuple[object, ...]]:
        return [(dice.randrange(6),) for _ in range(4)]

    def attempt(edits: list[tuple[object, ...]], folder: Path) -> None:
        if (3,) in edits:
            raise KeyError("not told")
        if (4,) in edits:
            (tmp_path / "outside").write_text("x")
        if (5,) in edits:
            raise TmergeError("refused", "x", "y")

    figures = run_campaign(Campaign("t", 60, propose, attempt), 1, 1.0, time.monotonic() + 1000, tmp_path / "failures")
    assert figures.cases == 60 and figures.refused and figures.accepted
    smallest = {fault["fault"].split()[0]: fault["edits"] for fault in figures.faults}
    assert smallest == {"KeyError:": [[3]], "touched": [[4]]}
    assert sum(fault["times"] for fault in figures.faults) + figures.refused + figures.accepted == 60
    assert list((tmp_path / "failures").iterdir())
