"""Every supported family as a tiny random model on disk, with biases that are not zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.tiny import make_model, make_tokenizer
from tmerge_tui.recipe import ATTENTION, PROJECTIONS

UNGATED = (*ATTENTION, "up", "down")
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Tiny:
    """`kinds` are what the last layer must have; `config` is what `make_model` does not set."""

    kinds: tuple[str, ...] = PROJECTIONS
    config: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""  # when it is not the key


def _mha(**config: Any) -> dict[str, Any]:
    """No shared keys and values."""
    return {"kv_heads": 4, **config}


FAMILIES = {
    "llama": Tiny(),
    "mistral": Tiny(),
    "ministral3": Tiny(config={"head_dim": 8}),
    "qwen2": Tiny(),
    "qwen3": Tiny(config={"head_dim": 16}),
    "gemma": Tiny(),
    "gemma2": Tiny(),
    "gemma3_text": Tiny(),
    "smollm3": Tiny(),
    "granite": Tiny(),
    "olmo": Tiny(),
    "olmo2": Tiny(),
    "olmo3": Tiny(),
    "stablelm": Tiny(config={"use_qkv_bias": True}),
    "cohere": Tiny(),
    "cohere2": Tiny(),
    "seed_oss": Tiny(config={"head_dim": 8}),
    "ernie4_5": Tiny(config={"head_dim": 8}),
    "exaone4": Tiny(),
    "phi3": Tiny(),
    "glm": Tiny(config={"head_dim": 8}),
    "glm4": Tiny(config={"head_dim": 8}),
    "phi": Tiny(UNGATED),
    "opt": Tiny(UNGATED, _mha(ffn_dim=48, word_embed_proj_dim=32)),
    "opt_350m": Tiny(UNGATED, _mha(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False), "opt"),
    "gptj": Tiny(UNGATED, _mha(n_inner=48, rotary_dim=4)),
    "gpt_neo": Tiny(
        UNGATED, _mha(attention_types=[[["global", "local"], 1]], num_layers=2, num_heads=4, window_size=16)
    ),
    "starcoder2": Tiny(UNGATED),
    "apertus": Tiny(UNGATED),
    "arcee": Tiny(UNGATED),
    "nemotron": Tiny(UNGATED),
    "gpt2": Tiny(UNGATED, _mha(n_inner=48)),
    "openai-gpt": Tiny(UNGATED, _mha()),
    "mpt": Tiny(UNGATED, _mha(d_model=32, n_heads=4, n_layers=2, max_seq_len=64)),
    "gpt_neox": Tiny(UNGATED, _mha()),
    "bloom": Tiny(UNGATED, _mha()),
    "persimmon": Tiny(UNGATED, _mha(qk_layernorm=False)),  # its bias would stand in for a missing q
    "falcon_7b": Tiny(UNGATED, _mha(multi_query=True, new_decoder_architecture=False, ffn_hidden_size=48), "falcon"),
    "falcon_40b": Tiny(UNGATED, _mha(new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=48), "falcon"),
    "falcon_rw": Tiny(
        UNGATED,
        _mha(multi_query=False, new_decoder_architecture=False, alibi=True, bias=True, ffn_hidden_size=48),
        "falcon",
    ),
    "gpt_bigcode": Tiny(UNGATED, _mha(multi_query=True)),
    "gpt_bigcode_heads": Tiny(UNGATED, _mha(multi_query=False), "gpt_bigcode"),
    "codegen": Tiny(UNGATED, _mha(rotary_dim=4)),
    "mixtral": Tiny(ATTENTION, EXPERTS),
    "qwen2_moe": Tiny(ATTENTION, {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": Tiny(ATTENTION, {**EXPERTS, "head_dim": 8}),
    "olmoe": Tiny(ATTENTION, EXPERTS),
    "granitemoe": Tiny(ATTENTION, EXPERTS),
    "phimoe": Tiny(ATTENTION, EXPERTS),
    "lfm2": Tiny(config={"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "olmo_hybrid": Tiny(config={"layer_types": ["linear_attention", "full_attention"]}),
    "jamba": Tiny(
        ATTENTION,
        {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 1, "mamba_dt_rank": 2},
    ),
    "gemma3": Tiny(),
    "qwen2_vl": Tiny(),
    "qwen2_5_vl": Tiny(),
}
SEEING = ("gemma3", "qwen2_vl", "qwen2_5_vl")


def make_family(folder: Path, family: str, *, layers: int = 2, seed: int = 0, **options: Any) -> Path:
    """Saves a tiny model of a family in FAMILIES; `options` are those of `make_model` or of the config."""
    tiny = FAMILIES[family]
    if family in SEEING:
        _make_seeing(folder, family, layers, seed)
    else:
        make_model(folder, tiny.model_type or family, layers=layers, seed=seed, **{**tiny.config, **options})
    _random_biases(folder, seed)
    return folder


def _make_seeing(folder: Path, family: str, layers: int, seed: int) -> None:
    """A model with a vision tower as deep as its text decoder, so that taking the wrong one would show."""
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if family == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2}
        vision |= {"image_size": 16, "patch_size": 8}
        extra: dict[str, Any] = {"mm_tokens_per_image": 4}
    else:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        vision = {"depth": layers, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
        vision |= {"out_hidden_size": 32, "intermediate_size": 24} if family == "qwen2_5_vl" else {}
        extra = {}
    extra |= {"image_token_id": 319, "video_token_id": 318, "vision_start_token_id": 317, "vision_end_token_id": 316}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, text_config=text, vision_config=vision, **extra)
    AutoModelForImageTextToText.from_config(config).eval().save_pretrained(folder)
    make_tokenizer(320).save_pretrained(folder)


def _random_biases(folder: Path, seed: int) -> None:
    """A fresh model's biases are zero, which would hide one that is forgotten or taken from the wrong rows."""
    generator = torch.Generator().manual_seed(seed)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
        for name, tensor in tensors.items():
            if name.endswith(".bias") and tensor.is_floating_point():
                tensor.normal_(0, 0.1, generator=generator)
        save_file(tensors, file, metadata)
