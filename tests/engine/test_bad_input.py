"""What a user gets wrong: a clear error before any work, the right exit code, and nothing lost or touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from tests.engine.pair import make_pair, recipe_of
from tests.tiny import edit_config, make_tokenizer
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight import room
from tmerge_tui.engine.preflight.check import check
from tmerge_tui.errors import CheckError, NumericsError, RecipeError, RunFolderError
from tmerge_tui.run_folder import RunDir

Mapping = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(made: Mapping, tmp_path: Path) -> Mapping:
    """A copy that a test may damage."""
    for name in ("source", "target"):
        shutil.copytree(made[name], tmp_path / name)
    text = shutil.copy(made["calibration"]["path"], tmp_path)
    places = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target"), "output": str(tmp_path / "run")}
    return {**made, **places, "calibration": {**made["calibration"], "path": str(text)}}


def weights(folder: str) -> Path:
    return Path(folder) / "model.safetensors"


def missing_folder(pair: Mapping) -> Mapping:
    return {**pair, "source": pair["source"] + "-gone"}


def truncated(pair: Mapping) -> Mapping:
    data = weights(pair["target"]).read_bytes()
    weights(pair["target"]).write_bytes(data[: len(data) // 2])
    return pair


def encoder(pair: Mapping) -> Mapping:
    shutil.rmtree(pair["source"])
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=320
    )
    BertModel(config).save_pretrained(pair["source"])
    make_tokenizer().save_pretrained(pair["source"])
    return pair


def quantised(pair: Mapping) -> Mapping:
    edit_config(Path(pair["source"]), quantization_config={"quant_method": "hqq", "bits": 4})
    return pair


def empty_text(pair: Mapping) -> Mapping:
    Path(pair["calibration"]["path"]).write_text("")
    return pair


def one_line(pair: Mapping) -> Mapping:
    Path(pair["calibration"]["path"]).write_text("a single line\n")
    return pair


def no_such_field(pair: Mapping) -> Mapping:
    path = Path(pair["calibration"]["path"]).with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(99)))
    return {**pair, "calibration": {**pair["calibration"], "path": str(path), "column": "text"}}


def wide_k(pair: Mapping) -> Mapping:
    kinds = {"transport": {"projections": ["q", "k"]}}
    return {**pair, **kinds, "fusion": {"k": 20, "alpha": 0.1}}  # k of the target has 16 rows


def no_such_layer(pair: Mapping) -> Mapping:
    return {**pair, "fusion": {"k": 8, "layers": [1, 7]}}


def no_such_device(pair: Mapping) -> Mapping:
    return {**pair, "device": "cuda:63"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (missing_folder, ("source-gone", "config.json", "check the path")),
        (truncated, ("model.safetensors", "header says", "whole")),
        (encoder, ("BertModel", "decoder model")),
        (quantised, ("hqq", "quantised")),
        (empty_text, ("text.txt", "empty")),
        (one_line, ("1 distinct sample", "at least 2")),
        (no_such_field, ("text", "body")),
        (wide_k, ("fusion.k: 20", "16 rows", "k: all")),
        (no_such_layer, ("fusion.layers", "[7]", "0 to 1")),
        (no_such_device, ("cuda:63", "cpu")),
    ],
)
def test_problem_is_found_before_any_work(
    pair: Mapping, damage: Callable[[Mapping], Mapping], says: tuple[str, ...]
) -> None:
    problems = check(recipe_of(damage(pair)))
    assert len(problems) == 1, problems
    for words in says:
        assert words in problems[0], problems[0]


def test_all_problems_come_in_one_list(pair: Mapping) -> None:
    problems = check(recipe_of(wide_k(one_line(quantised(pair)))))
    assert len(problems) == 2 and "hqq" in problems[0] and "sample" in problems[1]  # k is known only with both models
    with pytest.raises(CheckError) as failure:
        pipeline.run(recipe_of(pair), RunDir.create(pair["output"]), lambda event: None)
    assert failure.value.exit_code == 2


def test_nan_in_a_weight_names_the_tensor(pair: Mapping) -> None:
    tensors = load_file(weights(pair["source"]))
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, weights(pair["source"]), {"format": "pt"})
    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight") as failure:
        pipeline.run(recipe_of(pair), RunDir.create(pair["output"]), lambda event: None)
    assert failure.value.exit_code == 1 and failure.value.hint


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "much", float("nan"), [0.1, 2]])
def test_alpha_outside_its_range(pair: Mapping, alpha: Any) -> None:
    with pytest.raises(RecipeError, match="alpha"):
        recipe_of(pair, fusion={"alpha": alpha})


def test_an_output_that_is_something_else_is_not_touched(pair: Mapping, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="not a run of tmerge") as failure:
        RunDir.create(folder)
    assert "choose another output" in failure.value.hint
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


def test_too_little_room_for_the_output_is_said_beforehand(pair: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    (problem,) = check(recipe_of(pair))
    assert problem.startswith("output: 1 kB free at ") and "choose another output" in problem
