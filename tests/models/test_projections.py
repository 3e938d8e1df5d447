"""Projections of real families' module trees (meta device), of hand-made odd ones, and the matching of two layouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import make_model
from tmerge_tui.errors import ModelError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import SIDES, Layout, Projection, side_of
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import find_projections, match
from tmerge_tui.recipe import ATTENTION, PROJECTIONS

PLAIN = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "granite", "olmo2"]
HIDDEN, HEADS, KV, INNER = 32, 4, 2, 48


def on_meta(config: Any) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def layout_of(family: str, **config: Any) -> Layout:
    known = AutoConfig.for_model(family, **{"num_hidden_layers": 4, "vocab_size": 99, **config})
    model = on_meta(known)
    return find_projections(model, known, {name for name, _ in model.named_parameters()})


@pytest.mark.parametrize("family", PLAIN)
def test_plain_families_against_their_checkpoint_and_forward(family: str, tmp_path: Path) -> None:
    """Reference: shapes by arithmetic, names in the saved file, and hooks in a forward pass of the real model."""
    folder = make_model(tmp_path, family, layers=3)
    config = AutoConfig.from_pretrained(folder)
    checkpoint = Checkpoint(folder)
    layout = find_projections(on_meta(config), config, checkpoint.names)
    assert layout.layers == 3 and not layout.notes
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    narrow = HIDDEN // HEADS * KV
    shapes = {"q": (32, 32), "k": (narrow, 32), "v": (narrow, 32), "o": (32, 32)}
    shapes |= {"gate": (INNER, 32), "up": (INNER, 32), "down": (32, INNER)}
    seen: dict[str, tuple[int, int]] = {}
    for p in layout.projections:
        assert (p.d_out, p.d_in) == shapes[p.kind] == checkpoint.info(p.weight).shape
        assert (p.bias is not None) == (p.kind in "qkv" and family == "qwen2")
        module = model.get_submodule(p.module)
        assert torch.equal(module.weight, checkpoint.read(p.weight))
        if p.bias:
            assert torch.equal(module.bias, checkpoint.read(p.bias))
        module.register_forward_hook(
            lambda _, args, out, name=p.module: seen.update({name: (out.shape[-1], args[0].shape[-1])})
        )
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    assert seen == {p.module: (p.d_out, p.d_in) for p in layout.projections}
    assert len(seen) == 3 * 7
    assert all(layout.kinds(layer) == PROJECTIONS for layer in range(3))


def test_sides() -> None:
    layout = layout_of("llama", hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    assert layout.sides(0, PROJECTIONS) == SIDES
    assert layout.sides(1, ("o", "k")) == ("qkv.in", "k.out", "o.in", "o.out")
    assert layout.sides(1, ("up", "down")) == ("mlp.in", "up.out", "down.in", "down.out")
    assert {side: layout.width(2, side) for side in SIDES} == {
        "qkv.in": 32,
        "q.out": 32,
        "k.out": 16,
        "v.out": 16,
        "o.in": 32,
        "o.out": 32,
        "mlp.in": 32,
        "gate.out": 48,
        "up.out": 48,
        "down.in": 48,
        "down.out": 32,
    }
    assert {side_of(kind, end) for kind in PROJECTIONS for end in ("in", "out")} == set(SIDES)  # type: ignore[arg-type]
    assert layout.get(9, "q") is None and layout.width(9, "qkv.in") is None and layout.sides(9, PROJECTIONS) == ()


def test_hybrid_layers_are_decided_one_by_one() -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    layout = layout_of("jamba", **small, num_experts=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_offset=1)
    kinds = [layout.kinds(layer) for layer in range(4)]
    assert kinds == [("gate", "up", "down"), ATTENTION] * 2
    assert any(n.startswith("layers 1, 3: feed_forward.experts: mixture of experts") for n in layout.notes)
    assert any(n.startswith("layers 0, 2: mamba") for n in layout.notes)


def test_query_with_a_gate_inside_is_not_plain() -> None:
    layout = layout_of("qwen3_next", hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_experts=2)
    assert layout.kinds(3) == ("k", "v", "o") and layout.kinds(0) == ()
    assert any("layer 3: self_attn.q_proj" in n and "inputs" in n for n in layout.notes)


def test_text_decoder_of_a_model_that_also_sees() -> None:
    text = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = AutoConfig.for_model("gemma3", text_config={**text, "vocab_size": 99}, vision_config=vision)
    model = on_meta(config)
    layout = find_projections(model, config, {name for name, _ in model.named_parameters()})
    assert layout.layers == 3 and {p.d_in for p in layout.projections if p.kind == "q"} == {32}


def test_no_projection_at_all() -> None:
    with pytest.raises(ModelError) as caught:
        layout_of("mamba", hidden_size=32)
    assert "mixer" in caught.value.found and "q_proj" in caught.value.expected and caught.value.hint


def test_weight_that_is_not_in_the_file() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=99)
    model = on_meta(config)
    names = {name for name, _ in model.named_parameters()} - {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(ModelError, match=r"1 projection tensors .* 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        find_projections(model, config, names)


# -- hand-made layers --------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def block(**leaves: nn.Module) -> nn.Module:
    return nn.ModuleDict({"block": nn.ModuleDict(leaves)})


def linear(d_in: int, d_out: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(d_in, d_out, bias=bias)


def toy_layout(*layers: nn.Module) -> Layout:
    model = Toy(*layers)
    text = SimpleNamespace(num_hidden_layers=len(layers))
    config = SimpleNamespace(get_text_config=lambda: text)
    return find_projections(model, config, {name for name, _ in model.named_parameters()})


def test_two_modules_of_one_kind_are_not_guessed_at() -> None:
    layer = nn.ModuleDict({"a": nn.ModuleDict({"q_proj": linear(4, 4)}), "b": nn.ModuleDict({"q_proj": linear(4, 4)})})
    layer["mlp"] = nn.ModuleDict({"up_proj": linear(4, 8)})
    layout = toy_layout(layer, block(q_proj=linear(4, 4)))
    assert layout.kinds(0) == ("up",) and layout.kinds(1) == ("q",)
    assert layout.notes == ("layer 0: 2 modules could be q (a.q_proj, b.q_proj): none is used",)


@pytest.mark.parametrize(
    ("leaves", "kept"),
    [
        ({"q_proj": linear(4, 4), "k_proj": linear(6, 4), "v_proj": linear(4, 4)}, ("q", "v")),
        ({"gate_proj": linear(4, 8), "up_proj": linear(4, 6), "down_proj": linear(6, 4)}, ("up", "down")),
        ({"up_proj": linear(4, 8), "down_proj": linear(6, 4)}, ("down",)),
        ({"q_proj": linear(4, 8), "o_proj": linear(6, 4)}, ("o",)),
        ({"out_proj": linear(4, 4), "up_proj": linear(4, 4)}, ("up",)),  # no q beside it: not attention's output
    ],
)
def test_shapes_that_do_not_fit(leaves: dict[str, nn.Module], kept: tuple[str, ...]) -> None:
    layout = toy_layout(block(**leaves))
    assert layout.kinds(0) == kept
    assert len(layout.notes) == 1 and layout.notes[0].endswith(("not supported yet", "left as it is"))


def test_list_of_layers_must_be_one() -> None:
    model = nn.ModuleDict({"a": Toy(block(q_proj=linear(4, 4))), "b": Toy(block(q_proj=linear(4, 4)))})
    text = SimpleNamespace(num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"a\.layers, b\.layers"):
        find_projections(model, SimpleNamespace(get_text_config=lambda: text), ())
    text.num_hidden_layers = 7
    with pytest.raises(ModelError, match="lists of 7 layers in the model: none"):
        find_projections(model, SimpleNamespace(get_text_config=lambda: text), ())


# -- matching ----------------------------------------------------------------------------------------------------------


def layout(*kinds: str, notes: tuple[str, ...] = ()) -> Layout:
    """One string of kinds' first letters a layer, e.g. "qkvo"."""
    names = {kind[0]: kind for kind in PROJECTIONS}
    found = [
        Projection(layer, names[c], f"{layer}.{c}", f"{layer}.{c}.weight", None, 4, 4)
        for layer, letters in enumerate(kinds)
        for c in letters
    ]
    return Layout(len(kinds), tuple(found), notes)


def test_match_of_equals_says_nothing() -> None:
    matching = match(Pair(target=layout("qkvo", "qkvo"), source=layout("qkvogud", "qkvogud", "qkvogud")), ATTENTION)
    assert matching.kinds == ATTENTION and matching.notes == ()


def test_match_skips_what_one_side_lacks() -> None:
    matching = match(
        Pair(target=layout("qkvoud"), source=layout("qkvogud", notes=("layer 0: odd",))), ("q", "gate", "up")
    )
    assert matching.kinds == ("q", "up")
    assert matching.notes == (
        "gate: skipped, no gate projection in the target",
        "source, layer 0: odd",
    )


def test_match_says_which_layers_differ() -> None:
    matching = match(Pair(target=layout("qu", "u", "u", "qu", "u"), source=layout("q", "qu", "qu")), ("q", "up"))
    assert matching.kinds == ("q", "up")
    assert matching.notes == (
        "q: target layers 1-2, 4 without it: left as they are",
        "up: source layer 0 without it: give nothing",
    )


def test_match_of_strangers() -> None:
    with pytest.raises(ModelError, match="share none of the projections q, k") as caught:
        match(Pair(target=layout("u"), source=layout("k")), ("q", "k"))
    assert "q: skipped, no q projection in the target and the source" in caught.value.found
