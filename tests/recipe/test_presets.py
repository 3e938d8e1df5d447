"""The paper's tasks as recipes. Reference: its table of models, data and alpha."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmerge_tui.errors import RecipeError
from tmerge_tui.recipe import load_recipe, make_recipe, parse_recipe
from tmerge_tui.recipe.presets import FOLDER, preset_names, read_preset, with_preset

LLAMA_8B, LLAMA_1B = "unsloth/Llama-3.1-8B-Instruct", "unsloth/Llama-3.2-1B-Instruct"
PAPER = {  # target, source, alpha, data
    "malay": ("mesolitica/Malaysian-Llama-3.2-1B-Instruct", LLAMA_8B, 0.1, "mesolitica/Malaysian-SFT"),
    "indonesian": ("digo-prayudha/Llama-3.2-1B-Indonesian-lora", LLAMA_8B, 0.01, "izzulgod/indonesian-conversation"),
    "thai": ("scb10x/llama3.2-typhoon2-1b-instruct", LLAMA_8B, 0.01, "ChavyvAkvar/fineweb-2-1M-Sample-Thai"),
    "cantonese": (LLAMA_1B, "FlagAlpha/Llama3-Chinese-8B-Instruct", 0.01, "stvlynn/Cantonese-Dialogue"),
    "finance": (LLAMA_1B, LLAMA_8B, 0.03, "Josephgflowers/Finance-Instruct-500k"),
    "medical": (
        "PathFinderKR/Llama-3-1B-Medical-Instruct",
        LLAMA_8B,
        0.03,
        "Shekswess/medical_llama3_instruct_dataset",
    ),
}


def test_the_six_tasks_are_there() -> None:
    assert set(preset_names()) == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_is_the_papers(name: str) -> None:
    recipe = load_recipe(f"preset:{name}")
    target, source, alpha, data = PAPER[name]
    assert (recipe.target.model, recipe.source.model, recipe.fusion.alpha) == (target, source, (alpha,))
    assert recipe.calibration.repo_id == data and recipe.calibration.samples == 2000
    assert recipe.transport.projections == ("q", "k", "v", "o") and recipe.fusion.k == 128
    assert recipe.transport.epsilon == 0.1 and Path(recipe.output).name == f"tmerge-{name}"


@pytest.mark.parametrize(
    ("name", "alpha", "rate"),
    [
        ("malay", 0.1, 1e-6), ("indonesian", 0.1, 1e-6), ("thai", 0.01, 1e-7),
        ("cantonese", 0.1, 1e-8), ("finance", 0.03, 1e-6), ("medical", 0.005, 3e-7),
    ],
)  # fmt: skip
def test_it_trains_and_measures_as_the_paper_does(name: str, alpha: float, rate: float) -> None:
    recipe = load_recipe(f"preset:{name}")
    assert recipe.adaptation is not None
    assert (recipe.adaptation.alpha, recipe.adaptation.learning_rate) == (alpha, rate)
    assert (recipe.adaptation.samples, recipe.adaptation.block_length, recipe.adaptation.accumulation) == (
        2000,
        2048,
        8,
    )
    assert {"arc_easy", "commonsense_qa", "piqa", "social_iqa", "winogrande"} <= set(recipe.evaluation.tasks)


@pytest.mark.parametrize("name", PAPER)
def test_the_file_opens_with_the_command_that_runs_it(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first == f"# tmerge --batch preset:{name}"


def test_a_recipe_changes_a_preset_field_by_field() -> None:
    recipe = parse_recipe("preset: malay\nfusion: {alpha: 0.05}\nsource: {trust_remote_code: true}\noutput: there\n")
    assert recipe.fusion.alpha == (0.05,) and recipe.fusion.k == 128
    assert recipe.source.model == LLAMA_8B and recipe.source.trust_remote_code
    assert recipe.calibration.split == "google_translate_camel_ai" and Path(recipe.output).name == "there"
    assert make_recipe({"preset": "malay", "source": "a/b"}).source.model == "a/b"


@pytest.mark.parametrize("origin", [{"path": "mine.txt"}, {"repo_id": "me/mine"}])
def test_other_text_drops_all_that_was_about_the_presets(origin: dict[str, str]) -> None:
    calibration = make_recipe({"preset": "malay", "calibration": {**origin, "samples": 50}}).calibration
    assert calibration.split == "train" and calibration.column is None
    assert (calibration.samples, calibration.holdout) == (50, 400)
    assert (calibration.repo_id is None) == ("path" in origin)


@pytest.mark.parametrize(
    ("name", "said"), [("malya", "did you mean malay?"), ("Thai", "did you mean thai?"), ("xyz", "one of cantonese, ")]
)
def test_an_unknown_preset(name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"no preset '{name}'") as caught:
        load_recipe(f"preset:{name}")
    assert said in str(caught.value)


def test_without_a_preset_nothing_changes() -> None:
    data = {"source": "a/b"}
    assert with_preset(data) == data and read_preset("malay")["target"] == PAPER["malay"][0]
