"""Norms of every family: where they stand, and how they keep their scale. Reference: the running model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.families import FAMILIES, make_family
from tests.models.test_spaces import IDS, UNPLACED, load
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.families.norms import OUTSIDE, embedding_scale, norm_offset, norm_slot
from tmerge_tui.models.file_names import file_names
from tmerge_tui.models.layout import Layout

DENSE = [family for family in FAMILIES if family not in UNPLACED]


def slots(layout: Layout) -> dict[str, tuple[str, int | None]]:
    """Weights of norms of the stream -> (slot, layer)"""
    norms = [t for t in layout.tensors if t.role == "norm" and t.spaces[0][0].name == "residual"]
    leaves = {t.name: t.name.split(".")[-2] for t in norms}
    final = any(t.layer is None and OUTSIDE.get(leaves[t.name]) == "final" for t in norms)
    return {
        t.name: (
            norm_slot(leaves[t.name], {leaves[o.name] for o in norms if o.layer == t.layer}, t.layer, final),
            t.layer,
        )
        for t in norms
        if t.name.endswith(".weight")
    }


@pytest.mark.parametrize("family", DENSE)
def test_what_a_norm_gives_is_what_its_slot_says(family: str, tmp_path: Path) -> None:
    """What enters q (and up) is what the norm before attention (before the feed-forward) gives, and no other norm."""
    folder = make_family(tmp_path, family)
    facts, model = read_facts(folder, family), load(folder)
    found = slots(facts.layout)
    assert all(slot for slot, _ in found.values()), found
    modules = {name: path.rpartition(".")[0] for path, name in file_names(model, list(found))[0].items()}
    given: dict[str, torch.Tensor] = {}
    for name in found:
        module = model.get_submodule(modules[name])
        module.register_forward_hook(lambda _, args, out, name=name: given.update({name: out.clone()}))
    read: dict[tuple[str, int | None], torch.Tensor] = {}
    for kind, slot in (("q", "attention.in"), ("up", "mlp.in")):
        for p in (p for p in facts.layout.projections if p.kind == kind):
            model.get_submodule(p.module).register_forward_pre_hook(
                lambda _, args, at=(slot, p.layer): read.update({at: args[0].clone()})
            )
    with torch.no_grad():
        model(IDS, use_cache=False)
    for name, (slot, layer) in found.items():
        if slot in ("attention.in", "mlp.in"):
            torch.testing.assert_close(given[name].reshape(-1), read[slot, layer].reshape(-1))
        elif layer is not None and not slot.endswith(".sum"):
            assert slot in ("attention.out", "mlp.out")
            assert not any(torch.equal(given[name].reshape(-1), other.reshape(-1)) for other in read.values())


@pytest.mark.parametrize("family", DENSE)
def test_a_norm_without_scale_gives_nothing(family: str, tmp_path: Path) -> None:
    folder = make_family(tmp_path, family)
    facts, model = read_facts(folder, family), load(folder)
    names = file_names(model, [t.name for t in facts.layout.tensors if t.role == "norm" and t.name.endswith("weight")])[
        0
    ]
    for path in names:
        module = model.get_submodule(path.rpartition(".")[0])
        module.weight.data.fill_(-norm_offset(facts.model_type))
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
        width = module.weight.shape[-1]
        assert not module(torch.randn(1, 2, 4, width)[0]).any(), path


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2", "gemma3_text", "granite", "qwen2", "gpt2"])
def test_embeddings_enter_at_this_scale(family: str, tmp_path: Path) -> None:
    folder = make_family(tmp_path, family, **({"embedding_multiplier": 12.0} if family == "granite" else {}))
    model: Any = load(folder)
    config = AutoConfig.from_pretrained(folder)
    seen: list[torch.Tensor] = []
    if family == "gpt2":
        model.transformer.wpe.weight.data.zero_()
    layers = model.get_decoder().h if family == "gpt2" else model.get_decoder().layers
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(IDS, use_cache=False)
    scale = embedding_scale(config.model_type, config)
    E = model.get_input_embeddings()
    plain = torch.nn.functional.embedding(IDS, E.weight)
    torch.testing.assert_close(seen[0], plain * scale, rtol=1e-4, atol=1e-5)
