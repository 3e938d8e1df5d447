"""What is not finite behind the last projection is named before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.pair import make_pair, recipe_of
from tests.tiny import make_model, make_tokenizer
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.engine.preflight.download import download_models
from tmerge_tui.errors import NumericsError


def damage(folder: Path, name: str, rows: slice) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.setdefault(name, torch.zeros(4, 4))[rows] = torch.nan
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize(
    ("name", "rows", "tied", "named"),
    [
        ("model.norm.weight", slice(0, 1), False, True),
        ("lm_head.weight", slice(420, 421), False, True),  # logits of tokens nobody writes are in the sum all the same
        ("model.embed_tokens.weight", slice(3, 4), False, True),
        ("model.embed_tokens.weight", slice(400, None), False, False),  # rows that no token reads
        ("model.embed_tokens.weight", slice(400, None), True, True),  # they are the head's
        ("model.layers.{last}.mlp.down_proj.weight", slice(0, 1), False, True),
        ("something.extra", slice(0, 1), False, False),
    ],
)
def test_ends(tmp_path: Path, role: str, name: str, rows: slice, tied: bool, named: bool) -> None:
    pair = make_pair(tmp_path)
    folder = make_model(Path(pair[role]), vocab=440, tie_word_embeddings=tied)
    make_tokenizer(400).save_pretrained(folder)
    name = name.format(last=1)
    damage(folder, name, rows)
    prepared = prepare(recipe_of(pair))
    if not named:
        download_models(prepared, lambda event: None)
        return
    if role == "source":  # nothing is written from there
        seen: list[Any] = []
        download_models(prepared, seen.append)
        assert any(name in event.message and "its score will be empty" in event.message for event in seen)
        prepared = prepare(recipe_of(pair, adaptation={"compare": ["distill"]}))  # but a teacher is read to its end
    with pytest.raises(NumericsError, match=name.replace(".", r"\.")) as failure:
        download_models(prepared, lambda event: None)
    assert "alpha" not in failure.value.hint and str(folder) in failure.value.found
