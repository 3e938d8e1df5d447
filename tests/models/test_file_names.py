"""Names in files against names in the running model. Reference: what stock transformers loads from the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.families import make_family
from tmerge_tui.errors import ModelError
from tmerge_tui.models import projections as room
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import auto_class, build_on_meta
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.file_names import file_names
from tmerge_tui.models.parameters import read_weight

OLD_GEMMA = "language_model.model."


def inner(prefix: str) -> Callable[[str], str]:
    """As a checkpoint of the bare trunk has it."""
    return lambda name: name.removeprefix(prefix)


def as_the_model_says(name: str) -> str:
    return name.replace(OLD_GEMMA, "model.language_model.", 1).replace("vision_tower", "model.vision_tower")


@pytest.mark.parametrize(
    ("family", "renamed", "weight"),
    [
        ("gpt2", str, "transformer.h.0.attn.c_attn.weight"),
        ("gpt2", inner("transformer."), "h.0.attn.c_attn.weight"),
        ("bloom", inner("transformer."), "h.0.self_attention.query_key_value.weight"),
        ("llama", inner("model."), "layers.0.self_attn.q_proj.weight"),
        ("opt", inner("model."), "decoder.layers.0.self_attn.q_proj.weight"),
        ("gpt_neox", str, "gpt_neox.layers.0.attention.query_key_value.weight"),
        ("gemma3", str, f"{OLD_GEMMA}layers.0.self_attn.q_proj.weight"),
        ("gemma3", as_the_model_says, "model.language_model.layers.0.self_attn.q_proj.weight"),
        ("qwen2_vl", str, "model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_the_same_tensor_under_either_name(
    tmp_path: Path, family: str, renamed: Callable[[str], str], weight: str
) -> None:
    file = make_family(tmp_path, family) / "model.safetensors"
    save_file({renamed(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    layout, checkpoint = read_facts(tmp_path, "m").layout, Checkpoint(tmp_path)
    q = layout.get(0, "q")
    assert q is not None and q.weight == weight
    model, info = auto_class(AutoConfig.from_pretrained(tmp_path)).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    for p in layout.projections:
        assert torch.equal(p.take(model.get_submodule(p.module).weight), read_weight(checkpoint, p))


def test_every_name_of_a_file_is_placed(tmp_path: Path) -> None:
    """Heads and experts too: embed_out is lm_head, the tensors of all experts make one."""
    make_family(tmp_path / "neox", "gpt_neox")
    plain, assembled = file_names(meta(tmp_path / "neox"), Checkpoint(tmp_path / "neox").names)
    assert plain["lm_head.weight"] == "embed_out.weight" and not assembled
    make_family(tmp_path / "mixtral", "mixtral")
    plain, assembled = file_names(meta(tmp_path / "mixtral"), Checkpoint(tmp_path / "mixtral").names)
    assert "model.layers.1.mlp.experts.gate_up_proj" in assembled
    assert plain["model.layers.1.mlp.gate.weight"] == "model.layers.1.block_sparse_moe.gate.weight"
    assert set(plain) | assembled >= {name for name, _ in meta(tmp_path / "mixtral").named_parameters()}


def meta(folder: Path) -> torch.nn.Module:
    return build_on_meta(AutoConfig.from_pretrained(folder), "m", False)


def test_what_transformers_puts_together_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No family of today: a checkpoint that keeps q in a form of its own must not be taken for one that lacks it."""
    folder = make_family(tmp_path, "llama")
    made = "model.layers.1.self_attn.q_proj.weight"

    def assembled(model: object, names: object) -> tuple[dict[str, str], set[str]]:
        plain, _ = file_names(model, tuple(names))  # type: ignore[arg-type]
        return {name: file for name, file in plain.items() if name != made}, {made}

    monkeypatch.setattr(room, "file_names", assembled)
    layout = read_facts(folder, "m").layout
    assert layout.get(1, "q") is None and layout.get(0, "q") is not None
    note = "layer 1: self_attn.q_proj: put together by transformers from other tensors; q is left as it is"
    assert layout.notes == (note,)
    monkeypatch.setattr(room, "file_names", lambda model, names: ({}, set()))
    with pytest.raises(ModelError, match="14 projection tensors are not in the checkpoint"):
        read_facts(folder, "m")
