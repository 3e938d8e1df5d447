"""Which channels of a head positions turn together. Reference: the model itself. A pair of q and of k turned by one
angle leaves q . k what it is; two channels that are no pair would change it. So do free channels in another order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from tests.families import FAMILIES, make_family
from tests.models.test_spaces import logits
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.families.rotary import INTERLEAVED, is_sloped, turned_pairs


def turned(W: Tensor, pairs: Tensor, angles: Tensor, channels: int) -> Tensor:
    """Rows of all heads, each pair turned by its angle, the channels that no position turns reversed."""
    heads = W.view(-1, channels, *W.shape[1:]).clone()
    shape = (1, -1, *[1] * (W.ndim - 1))
    cos, sin = angles.cos().view(shape), angles.sin().view(shape)
    first, second = heads[:, pairs[:, 0]], heads[:, pairs[:, 1]]
    heads[:, pairs[:, 0]], heads[:, pairs[:, 1]] = first * cos - second * sin, second * cos + first * sin
    free = [i for i in range(channels) if i not in set(pairs.flatten().tolist())]
    heads[:, free] = heads[:, free[::-1]]
    return heads.flatten(0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_may_be_turned(family: str, tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", family)
    layout = read_facts(folder, family).layout
    if (
        not any(heads is not None and heads.rotary for heads in layout.heads)
        or len(list(folder.glob("*.safetensors"))) > 1
    ):
        pytest.skip("positions turn nothing")
    text: Any = AutoConfig.from_pretrained(folder).get_text_config()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (file,) = copy.glob("*.safetensors")
    tensors = load_file(file)
    for p in (p for p in layout.projections if p.kind in ("q", "k")):
        heads = layout.heads[p.layer]
        assert heads is not None
        pairs = turned_pairs(text.model_type, text, heads.channels)
        assert 0 < 2 * len(pairs) <= heads.channels
        angles = torch.linspace(0.3, 2.5, len(pairs)) + p.layer
        for name in (p.weight, p.bias):
            if name is not None:
                p.put(tensors[name], turned(p.take(tensors[name]), pairs, angles, heads.channels))
    for (
        tensor
    ) in layout.tensors:  # of one number a channel, which turning would not leave alone: all of them are 1 or 0
        if tensor.role == "norm" and tensor.spaces[0][0].name != "residual":
            assert tensors[tensor.name].unique().numel() == 1
    save_file(tensors, file, {"format": "pt"})
    torch.testing.assert_close(logits(copy), logits(folder), rtol=1e-3, atol=1e-4)


def test_every_interleaved_family_is_tried() -> None:
    assert set(INTERLEAVED) <= set(FAMILIES)


@pytest.mark.parametrize(("family", "sloped"), [("bloom", True), ("mpt", True), ("falcon_rw", True), ("gpt2", False)])
def test_slopes(family: str, sloped: bool, tmp_path: Path) -> None:
    config: Any = AutoConfig.from_pretrained(make_family(tmp_path, family))
    assert is_sloped(config.model_type, config) == sloped
