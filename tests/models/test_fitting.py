"""A checkpoint that does not fill its model is refused by its headers, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import edit_config, make_model, rewritten
from tmerge_tui.errors import ModelError
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.loading import load_model


def without(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "model.norm.weight", "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model")
    without(folder, name)
    with pytest.raises(ModelError, match=rf"{name} is in no weight file"):
        read_facts(folder, "model")


@pytest.mark.parametrize("tied", [True, False])
def test_one_name_of_a_tied_weight_is_enough(tmp_path: Path, tied: bool) -> None:
    folder = make_model(tmp_path / "model", tie_word_embeddings=tied)
    tensors = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in tensors) == (not tied)
    facts = read_facts(folder, "model")
    assert facts.tied == tied and load_model(facts, torch.device("cpu"), torch.float32, None, lambda event: None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 300}, r"model\.embed_tokens\.weight has shape \[320, 32\]"),
        ({"intermediate_size": 40}, r"layers\.0\.mlp\.\w+\.weight has shape"),
    ],
)
def test_a_configuration_of_another_model(tmp_path: Path, change: dict[str, int], named: str) -> None:
    folder = make_model(tmp_path / "model")
    edit_config(folder, **change)
    with pytest.raises(ModelError, match=named):
        read_facts(folder, "model")


def test_rows_that_were_added_to_the_embedding_alone(tmp_path: Path) -> None:
    """As people resize by hand: the embedding has rows for new tokens, config.json and the head have none."""

    def longer(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[:2]]) if name == "model.embed_tokens.weight" else tensor

    folder = rewritten(make_model(tmp_path / "model"), tmp_path / "resized", longer)
    with pytest.raises(ModelError, match=r"shape \[322, 32\] in its file, and config\.json asks for \[320, 32\]"):
        read_facts(folder, "model")
