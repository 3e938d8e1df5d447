"""Every family's projections. References: the split written by hand in tests.by_hand, forward passes, file contents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from tests import by_hand
from tests.families import FAMILIES, SEEING, make_family
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import auto_class
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.forward import ENDS, HookPoint, record, trunk
from tmerge_tui.models.layout import side_of
from tmerge_tui.models.parameters import read_bias, read_weight

IDS = torch.tensor([[5, 9, 40, 8, 3, 77, 21]])
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp(family), family)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def load(folder: Path) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(folder)
    return auto_class(config).from_pretrained(folder, dtype=torch.float32).eval()


def recorded(model: torch.nn.Module, facts: ModelFacts) -> dict[str, Tensor]:
    """Every side of every layer, token by token."""
    found: dict[str, Tensor] = {}

    def see(point: HookPoint, seen: Tensor) -> None:
        found[f"{point.projection.layer}.{point.side}"] = point.take(seen).flatten(0, -2).clone()

    with torch.no_grad(), record(model, [HookPoint(p, end) for p in facts.layout.projections for end in ENDS], see):
        trunk(model)(input_ids=IDS, use_cache=False)
    return found


def test_every_projection_is_W_x_plus_b_of_the_file(family: str, folder: Path) -> None:
    facts = read_facts(folder, family)
    tensors, checkpoint = tensors_of(folder), Checkpoint(folder)
    found = recorded(load(folder), facts)
    assert facts.layout.kinds(facts.layers - 1) == FAMILIES[family].kinds
    assert {p.kind for p in facts.layout.projections if p.layer == 0} <= set(by_hand.split(family, tensors, 0))
    for p in facts.layout.projections:
        W, b = by_hand.split(family, tensors, p.layer)[p.kind]
        assert torch.equal(read_weight(checkpoint, p), W)
        rows = torch.tensor([3, 1])
        assert torch.equal(read_weight(checkpoint, p, rows), W[rows])
        bias = read_bias(checkpoint, p)
        assert (bias is None) == (b is None) and (b is None or torch.equal(bias, b))
        assert (p.d_out, p.d_in) == W.shape
        X = found[f"{p.layer}.{side_of(p.kind, 'in')}"]
        Y = found[f"{p.layer}.{side_of(p.kind, 'out')}"]
        torch.testing.assert_close(Y, X @ W.T + (0 if b is None else b), rtol=1e-4, atol=1e-5)


def test_without_v_attention_has_nothing_to_say(family: str, folder: Path) -> None:
    """Whatever a fused tensor is thought to hold: the rows called v are those whose absence silences the attention,
    and without q or without k every key weighs the same."""
    facts, layer = read_facts(folder, family), FAMILIES_WITH_ATTENTION.get(family, 0)
    silent, even = [], []
    for kind in ("q", "k", "v"):
        model, p = load(folder), facts.layout.get(layer, kind)
        assert p is not None
        module = model.get_submodule(p.module)
        with torch.no_grad():
            p.put(module.weight, torch.zeros(()))
            if p.bias:
                p.put(module.bias, torch.zeros(()))
        into = recorded(model, facts)[f"{layer}.o.in"]
        (silent if kind == "v" else even).append(into)
    assert not silent[0].any()
    assert even[0].any()
    torch.testing.assert_close(even[0], even[1], rtol=1e-4, atol=1e-6)


FAMILIES_WITH_ATTENTION = {"lfm2": 1, "olmo_hybrid": 1, "jamba": 1}  # which layer has it, if not the first


def test_put_is_the_inverse_of_take_and_leaves_the_rest(family: str, folder: Path) -> None:
    facts, checkpoint = read_facts(folder, family), Checkpoint(folder)
    seen: dict[str, Tensor] = {}
    for p in facts.layout.projections:
        stored = seen.setdefault(p.weight, checkpoint.read(p.weight))
        before = stored.clone()
        own = p.take(stored).clone()
        p.put(stored, own)
        assert torch.equal(stored, before)
        p.put(stored, own + 1)
        assert torch.equal(p.take(stored), own + 1)
        assert int((stored != before).sum()) == own.numel()


def test_projections_cover_what_is_fused(family: str, folder: Path) -> None:
    """Every neuron of a shared tensor belongs to exactly one projection."""
    layout, checkpoint = read_facts(folder, family).layout, Checkpoint(folder)
    shared: dict[str, list[int]] = {}
    neurons = {}
    for p in layout.projections:
        if p.block is not None:
            shared.setdefault(p.weight, []).extend(p.block.index().tolist())
            neurons[p.weight] = checkpoint.info(p.weight).shape[1 if p.transposed else 0]
    for name, index in shared.items():
        assert sorted(index) == list(range(neurons[name]))
    fused = {"qkv", "gate_up"} & set(by_hand.names(family))
    assert len(shared) == layout.layers * len(fused)


@pytest.mark.parametrize("name", SEEING)
def test_only_the_text_part_of_a_model_that_sees(name: str, tmp_path: Path) -> None:
    facts = read_facts(make_family(tmp_path, name), name)
    assert all("vision" not in p.weight and "visual" not in p.weight for p in facts.layout.projections)
    assert len(facts.layout.projections) == 2 * 7
