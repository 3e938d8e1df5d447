"""What the demo ships: small, two models that share nothing, and text that is held out for real."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tmerge_tui import shipped
from tmerge_tui.recipe import Recipe, load_recipe

DEMO = shipped.folder() / "demo"
MODELS = ("source-llama", "target-qwen2")
LIMIT = 12_000_000  # bytes


def lines(name: str) -> list[str]:
    return (DEMO / name).read_text(encoding="utf-8").splitlines()


@cache
def config(model: str) -> dict[str, Any]:
    return json.loads((DEMO / model / "config.json").read_text())


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(DEMO)  # relative paths are taken from the current directory
    return load_recipe("recipe.yaml")


def test_size() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < LIMIT


@pytest.mark.parametrize("field", ["model_type", "hidden_size", "num_hidden_layers", "vocab_size"])
def test_models_differ(field: str) -> None:
    source, target = (config(model)[field] for model in MODELS)
    assert source != target


def test_tokenizers_cut_differently() -> None:
    text = lines("holdout.txt")[0]
    cuts = [AutoTokenizer.from_pretrained(DEMO / model).tokenize(text) for model in MODELS]
    assert cuts[0] != cuts[1]


@pytest.mark.parametrize("model", MODELS)
def test_model_card_declares_the_licence(model: str) -> None:
    assert (DEMO / model / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: cc0-1.0\n")


@pytest.mark.parametrize("model", MODELS)
def test_tokenizer_class_is_one_that_older_releases_know(model: str) -> None:
    settings = json.loads((DEMO / model / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("model", MODELS)
def test_tokenizer_keeps_every_byte(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / model)
    for text in [*lines("holdout.txt")[:20], "naïve 東京 🙂  two spaces"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("model", "dtype"), [("source-llama", torch.bfloat16), ("target-qwen2", torch.float32)])
def test_models_load_and_continue(model: str, dtype: torch.dtype) -> None:
    loaded, info = AutoModelForCausalLM.from_pretrained(DEMO / model, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.dtype == dtype
    tokenizer = AutoTokenizer.from_pretrained(DEMO / model)
    prompt = tokenizer("Yesu akawaambia", return_tensors="pt")
    out = loaded.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert torch.isfinite(loaded(**prompt).logits).all()
    assert out.shape[1] > prompt["input_ids"].shape[1]


def test_target_has_trained_biases() -> None:
    with safe_open(DEMO / "target-qwen2" / "model.safetensors", "pt") as file:
        biases = [name for name in file.keys() if name.endswith("bias")]  # noqa: SIM118
        assert len(biases) == 3 * config("target-qwen2")["num_hidden_layers"]
        assert all(file.get_tensor(name).abs().max() > 0 for name in biases)


def test_recipe_names_what_is_shipped(recipe: Recipe) -> None:
    assert Path(recipe.source.model) == DEMO / "source-llama"
    assert Path(recipe.target.model) == DEMO / "target-qwen2"
    assert recipe.calibration.path == str(DEMO / "calibration.txt")
    assert recipe.calibration.holdout_path == str(DEMO / "holdout.txt")
    assert len(recipe.fusion.alpha) > 1


def test_recipe_fits_text_and_widths(recipe: Recipe) -> None:
    assert recipe.calibration.samples <= len(lines("calibration.txt"))
    assert recipe.calibration.holdout <= len(lines("holdout.txt"))
    with safe_open(DEMO / "target-qwen2" / "model.safetensors", "pt") as file:
        names = [n for n in file.keys() if re.search(r"(_proj)\.weight$", n)]  # noqa: SIM118
        narrowest = min(min(file.get_tensor(name).shape) for name in names)
    assert isinstance(recipe.fusion.k, int) and recipe.fusion.k <= narrowest


def test_holdout_is_held_out() -> None:
    calibration, holdout = lines("calibration.txt"), lines("holdout.txt")
    assert len(set(holdout)) == len(holdout) and len(set(calibration)) == len(calibration)
    assert not set(calibration) & set(holdout)


def test_readme_states_measure_and_licence() -> None:
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    source, target = (float(x) for x in re.findall(r"\| ([0-9]\.[0-9]{4}) \|", text))
    assert 1 < source < target < 3, "bits per byte: the target has something to gain"
    assert "CC0 1.0" in text
