"""Spaces of every family's tensors. Reference: the model itself. Whatever order a space's channels are in, applied to
every dimension said to be in it, the model writes the same logits; a dimension that is left out, or that is another's,
would change them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from tests.families import FAMILIES, make_family
from tests.tiny import rewritten
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import auto_class
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.layout import Heads, Layout, Space, StoredTensor
from tmerge_tui.models.projections import decoder_layers
from tmerge_tui.models.spaces import NAMES

IDS = torch.tensor([[5, 9, 40, 8, 3, 77, 21]])
UNPLACED = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "lfm2", "olmo_hybrid", "jamba"}
SEEING = {"gemma3", "qwen2_vl", "qwen2_5_vl"}
SLOPES = {"bloom", "mpt", "falcon_rw"}  # each head has a slope of its own: heads cannot change places


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def facts(family: str, folder: Path) -> ModelFacts:
    return read_facts(folder, family)


def load(folder: Path) -> Any:
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32).eval()


def test_every_tensor_of_the_file_once_and_with_its_sizes(family: str, folder: Path, facts: ModelFacts) -> None:
    checkpoint, layout = Checkpoint(folder), facts.layout
    assert [tensor.name for tensor in layout.tensors] == list(checkpoint.names)
    sizes: dict[tuple[str, int | None], int] = {}
    for tensor in layout.tensors:
        assert tensor.shape == checkpoint.info(tensor.name).shape, tensor
        assert layout.tensor(tensor.name) is tensor
        assert bool(tensor.note) == (tensor.role == "other")
        for space in (space for spaces in tensor.spaces for space in spaces):
            assert space.name in NAMES
            assert (space.name == "unknown") == bool(tensor.note)
            if space.name != "unknown":
                assert sizes.setdefault((space.name, space.layer), space.size) == space.size, tensor
    assert sizes["residual", None] == facts.hidden and sizes["vocab", None] == facts.vocab


def test_the_projections_are_a_view(facts: ModelFacts) -> None:
    layout = facts.layout
    held = {(p.layer, p.kind, tensor.name) for tensor in layout.tensors for p in tensor.projections}
    names = {(p.layer, p.kind, name) for p in layout.projections for name in (p.weight, p.bias) if name}
    assert held == names


def test_what_has_no_known_space(family: str, facts: ModelFacts) -> None:
    """Nothing in a dense decoder but numbers; experts and recurrent blocks; what sees."""
    unknown = [tensor for tensor in facts.layout.tensors if tensor.note]
    assert [t.name for t in unknown] == [t.name for t in facts.layout.tensors if t.role == "other"]
    if family in UNPLACED:
        assert any(tensor.layer == 0 for tensor in unknown)
    elif family in SEEING:
        assert {tensor.note for tensor in unknown} == {"outside the text decoder"}
    elif family == "apertus":
        assert {tensor.shape for tensor in unknown} <= {(), (1,)}
    else:
        assert not unknown


# -- whatever the order of a space -------------------------------------------------------------------------------------


def reordered(folder: Path, out: Path, layout: Layout, orders: dict[tuple[str, int | None], Tensor]) -> Path:
    """The model with the channels of some spaces in another order, in every tensor that has them."""

    def change(name: str, tensor: Tensor) -> Tensor:
        known = layout.tensor(name)
        for dim, spaces in enumerate(known.spaces):
            index = torch.arange(tensor.shape[dim])
            for space, rows in zip(spaces, rows_of(known, spaces), strict=True):
                if (space.name, space.layer) in orders:
                    index[rows] = rows[orders[space.name, space.layer]]
            tensor = tensor.index_select(dim, index)
        return tensor

    return rewritten(folder, out, change)


def rows_of(tensor: StoredTensor, spaces: tuple[Space, ...]) -> list[Tensor]:
    """Which entries along a dimension each of its spaces has."""
    if len(spaces) == 1:
        return [torch.arange(spaces[0].size)]
    return [p.block.index() for p in tensor.projections if p.block is not None]


def shuffled(n: int, seed: int = 0) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return load(folder)(IDS, use_cache=False).logits


def of_heads(order: Tensor, channels: int) -> Tensor:
    return (order[:, None] * channels + torch.arange(channels)).flatten()


def head_orders(heads: Heads) -> tuple[Tensor, Tensor]:
    """Orders of [queries * channels] and [keys * channels]: groups change places, and query heads within them."""
    share = heads.queries // heads.keys
    groups, within = shuffled(heads.keys, 1), shuffled(share, 2)
    queries = (groups[:, None] * share + within).flatten()
    return of_heads(queries, heads.channels), of_heads(groups, heads.channels)


def orders_of(layout: Layout, space: str, hidden: int) -> dict[tuple[str, int | None], Tensor]:
    if space == "residual":
        return {("residual", None): shuffled(hidden)}
    if space == "mlp":
        ups = [p for p in layout.projections if p.kind == "up"]
        return {("mlp", p.layer): shuffled(p.d_out, p.layer) for p in ups}
    orders: dict[tuple[str, int | None], Tensor] = {}
    for layer, heads in enumerate(layout.heads):
        if heads is not None:
            orders["heads.q", layer], orders["heads.kv", layer] = head_orders(heads)
    return orders


@pytest.mark.parametrize("space", ["residual", "mlp", "heads"])
def test_the_order_of_a_space_does_not_matter(
    family: str, folder: Path, facts: ModelFacts, space: str, tmp_path: Path
) -> None:
    if (space == "heads" and family in SLOPES) or (space == "residual" and family in UNPLACED):
        pytest.skip("not free, or not known in every tensor")
    orders = orders_of(facts.layout, space, facts.hidden)
    if not orders:
        pytest.skip("mixtures of experts throughout")
    expected = logits(folder)
    other = reordered(folder, tmp_path / "other", facts.layout, orders)
    assert any(not torch.equal(a, b) for a, b in zip(*map(values, (folder, other)), strict=True))
    torch.testing.assert_close(logits(other), expected, rtol=1e-3, atol=1e-4)


def values(folder: Path) -> list[Tensor]:
    return [t for file in sorted(folder.glob("*.safetensors")) for _, t in sorted(load_file(file).items())]


# -- heads -------------------------------------------------------------------------------------------------------------


def test_heads_are_rotary_where_positions_turn_them(folder: Path, facts: ModelFacts) -> None:
    """The same activations enter a layer at two sets of positions."""
    model, layout = load(folder), facts.layout
    decoder = model.get_decoder()
    takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters
    path, layers = decoder_layers(model, layout.layers)
    entering = torch.randn(1, IDS.numel(), facts.hidden, generator=torch.Generator().manual_seed(0))

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return ((entering, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entering})

    for layer in layers:
        layer.register_forward_pre_hook(enter, with_kwargs=True)
    seen: dict[int, list[Tensor]] = {}
    for p in (p for p in layout.projections if p.kind == "o"):
        model.get_submodule(p.module).register_forward_pre_hook(
            lambda _, args, layer=p.layer: seen.setdefault(layer, []).append(args[0])
        )
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}  # or gaps would be ends of texts
    for positions in (torch.arange(IDS.numel()), 3 * torch.arange(IDS.numel())):
        with torch.no_grad():
            decoder(**given, use_cache=False, **({"position_ids": positions[None]} if takes_positions else {}))
    assert seen.keys() == {layer for layer, heads in enumerate(layout.heads) if heads is not None}
    for layer, (near, far) in seen.items():
        heads = layout.heads[layer]
        assert heads is not None
        assert heads.rotary == (not torch.allclose(near, far, atol=1e-6)), f"{path}.{layer}"


@pytest.mark.parametrize(
    ("family", "options", "rotary"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, [True, False]),
        ("cohere2", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}, [True, False]),
        ("exaone4", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64}, [False, True]),
    ],
)
def test_layers_without_positions(family: str, options: dict[str, Any], rotary: list[bool], tmp_path: Path) -> None:
    facts = read_facts(make_family(tmp_path, family, **options), family)
    assert [heads is not None and heads.rotary for heads in facts.layout.heads] == rotary
    test_heads_are_rotary_where_positions_turn_them(tmp_path, facts)


@pytest.mark.parametrize(
    ("family", "options", "space"),
    [
        ("stablelm", {"qk_layernorm": True}, "head"),
        ("persimmon", {"qk_layernorm": True}, "head"),
        ("qwen3", {}, "head"),
        ("olmo2", {}, "heads.q"),
    ],
)
def test_norms_of_queries(family: str, options: dict[str, Any], space: str, tmp_path: Path) -> None:
    layout = read_facts(make_family(tmp_path, family, **options), family).layout
    found = [t for t in layout.along(space) if t.role == "norm" and t.layer == 1]
    assert found and all(t.spaces[0][0] == Space(space, t.shape[0], 1) for t in found)
    assert not [t for t in layout.tensors if t.note]


def test_a_tensor_that_no_module_has_is_listed(tmp_path: Path) -> None:
    (file,) = make_family(tmp_path, "llama").glob("*.safetensors")
    save_file({**load_file(file), "model.layers.1.left.over": torch.zeros(3, 5)}, file, {"format": "pt"})
    tensor = read_facts(tmp_path, "m").layout.tensor("model.layers.1.left.over")
    unknown = ((Space("unknown", 3, 1),), (Space("unknown", 5, 1),))
    assert tensor == StoredTensor(tensor.name, "other", unknown, 1, (), "not in the model that transformers builds")
