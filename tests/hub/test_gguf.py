"""GGUF files by Hub id: known before they are downloaded, by range, and read as local ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.engine.pair import make_pair, recipe_of
from tests.gguf_files import write_gguf
from tests.hub.server import Hub
from tests.tiny import make_model
from tmerge_tui.commands import inspect
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.errors import ModelError
from tmerge_tui.hub.locate import find
from tmerge_tui.models.quantised import gguf_file
from tmerge_tui.recipe import ModelChoice, load_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui import catalog

NAME = "org/tiny-GGUF:tiny-Q8_0.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "plain", hidden=256, intermediate=256, layers=2, tie_word_embeddings=False)


@pytest.fixture
def served(hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    monkeypatch.setattr(gguf_file, "FIRST", 4096)
    file = write_gguf(folder, tmp_path / "tiny-Q8_0.gguf")
    write_gguf(folder, tmp_path / "split.gguf", split=9)
    files = {f"parts/{one.name}": one.read_bytes() for one in sorted(tmp_path.glob("split-*.gguf"))}
    files |= {file.name: file.read_bytes(), "README.md": b"---\nlicense: mit\n---\n", "config.json": b"{}"}
    hub.add("org/tiny-GGUF", files)
    return files


def test_a_file_of_a_repository_is_known_from_its_beginning(
    hub: Hub, served: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of({**make_pair(tmp_path), "transport": {"projections": ["q"]}}, source=NAME)
    prepared = prepare(recipe)
    source = prepared.source
    assert source.facts.parameters > 500_000 and source.facts.licence == "mit" and source.facts.label == NAME
    assert source.tokenizer("Two rivers").input_ids and not source.located.whole
    assert sum(asked.sent for asked in hub.asked("*tiny-Q8_0.gguf")) < len(served["tiny-Q8_0.gguf"]) / 2
    assert not list((tmp_path / "hf").rglob("*.gguf")), "room is only lent while the head is read"
    assert inspect._downloads(prepared) == [(NAME, len(served["tiny-Q8_0.gguf"]), 1)]
    inspect.check(NAME, trusted=False)
    told = capsys.readouterr().out
    assert "LlamaForCausalLM, 2 layers" in told and "packed: GGUF Q8_0, 8.5 bits a weight; read as bfloat16" in told


@pytest.mark.parametrize("name", [NAME, "org/tiny-GGUF:parts/split-00001-of-00003.gguf"])
def test_a_merge_from_a_file_of_a_repository(
    hub: Hub, served: dict[str, bytes], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = {**make_pair(tmp_path), "transport": {"projections": ["q"]}, "evaluation": {"controls": []}}
    recipe = recipe_of(mapping, source=name)
    pipeline.run(recipe, RunDir.create(recipe.output), lambda event: None)
    report = json.loads((Path(recipe.output) / "report.json").read_text())
    assert report["models"]["source"]["commit"] == hub.repos["model", "org/tiny-GGUF"].commit
    card = (Path(recipe.output) / "model" / "README.md").read_text()
    assert "- org/tiny-GGUF\n" in card
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # all of it is here
    again = prepare(recipe)
    assert again.source.located.whole and again.source.located.pending is None
    pinned = prepare(load_recipe(RunDir.open(recipe.output).recipe))  # at the commit that the run has written down
    assert pinned.source.located.folder == again.source.located.folder
    assert catalog.in_cache(name) == catalog.Found(
        name, "cache", None, len(served[name.partition(":")[2]]), family="GGUF"
    )


def test_a_wrong_name_lists_what_is_there(served: dict[str, bytes]) -> None:
    for name in ("org/tiny-GGUF:tiny-Q4_K.gguf", "org/tiny-GGUF:parts/split-00001-of-00004.gguf"):
        with pytest.raises(
            ModelError, match=r"there is no file [\s\S]*parts/split-00001-of-00003\.gguf, tiny-Q8_0\.gguf$"
        ):
            find(ModelChoice(model=name))
    with pytest.raises(
        ModelError, match=r"org/tiny-GGUF has only GGUF weights[\s\S]*org/tiny-GGUF:FILE[\s\S]*tiny-Q8_0"
    ):
        find(ModelChoice(model="org/tiny-GGUF"))


def test_revisions_and_pages_of_files(served: dict[str, bytes], hub: Hub) -> None:
    for written in (f"{NAME}@main", "org/tiny-GGUF@main:tiny-Q8_0.gguf"):
        choice = ModelChoice(model=written)
        assert (choice.model, choice.revision) == (NAME, "main")
        assert find(choice).name == f"{NAME}@main"
    page = "https://huggingface.co/org/tiny-GGUF/blob/main/parts/a%20b.gguf?download=true"
    assert catalog.tidy(page) == "org/tiny-GGUF:parts/a b.gguf"
    assert catalog.tidy("https://huggingface.co/org/tiny/resolve/v1/x.gguf") == "org/tiny:x.gguf@v1"
    assert catalog.tidy("https://huggingface.co/org/tiny/tree/main") == "org/tiny"


def test_a_target_is_refused_before_anything_is_downloaded(hub: Hub, served: dict[str, bytes], tmp_path: Path) -> None:
    pair: dict[str, Any] = make_pair(tmp_path)
    (problem,) = check(recipe_of(pair, target=NAME))
    assert "a target is written as it is read" in problem and "convert_hf_to_gguf.py" in problem
    assert not hub.asked("*tiny-Q8_0.gguf")
