"""A model folder as llama.cpp's file: its weights quantised, its tokenizer inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

ONE_MORE = ("gemma2", "gemma3")  # whose converter stores norms as w + 1
MADE_UP = {
    "Q2_K": 80,
    "Q3_K": 108,
    "Q4_K": 0,
    "Q5_K": 0,
    "Q6_K": 208,
    "IQ4_XS": 0,
}  # kind -> where its float16 scale is


def write_gguf(
    folder: Path,
    file: Path,
    kind: str = "Q8_0",
    architecture: str = "llama",
    *,
    leave_out: str | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, Any] | None = None,
    split: int = 0,
) -> Path:
    """`folder` holds a model of `tests.tiny`, with widths that are multiples of 32 (256 for K types, whose blocks are
    made up). `leave_out` a tensor, by llama.cpp's name; `more` ones that no weight is; `split` after so many."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(str(file), architecture, split_max_tensors=split)
    _shape(writer, config)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key if key.startswith(("general", "tokenizer")) else f"{architecture}.{key}", value)
    add_tokenizer(writer, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for name, value in model.state_dict().items():
        base, _, part = name.rpartition(".")
        own = f"{names.get_name(base)}.{part}"
        if own == leave_out or (tied and name == "lm_head.weight"):
            continue
        value = value.float().squeeze(1) if value.dim() == 3 else value.float()
        if architecture in ONE_MORE and "norm" in name:
            value = value + 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            value = paired(value, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        target = kind if value.dim() == 2 and "conv.conv" not in name else "F32"
        number = gguf.GGMLQuantizationType[target]
        writer.add_tensor(own, _packed(value.numpy(), target, number), raw_dtype=number)
    for name, extra in (more or {}).items():
        writer.add_tensor(name, extra.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def paired(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q and k as llama.cpp pairs them."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _shape(writer: gguf.GGUFWriter, config: Any) -> None:
    """As convert_hf_to_gguf.py states it."""
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    kv, kinds = config.num_key_value_heads, getattr(config, "layer_types", None)
    convolved = hasattr(config, "conv_L_cache")
    writer.add_head_count_kv([kv * (kind == "full_attention") for kind in kinds] if convolved else kv)
    if convolved:
        writer.add_shortconv_l_cache(config.conv_L_cache)
    if hasattr(config, "norm_epsilon"):
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", None) or config.norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(rope.get("partial_rotary_factor", 1.0) * width))
    if getattr(config, "head_dim", None):
        writer.add_key_length(width)
        writer.add_value_length(width)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)


def _packed(value: np.ndarray, kind: str, number: gguf.GGMLQuantizationType) -> np.ndarray:
    if kind == "F32":
        return value
    if kind not in MADE_UP:
        return gguf.quants.quantize(value, number)
    width, size = gguf.GGML_QUANT_SIZES[number]
    blocks = np.random.default_rng(0).integers(0, 255, (*value.shape[:-1], value.shape[-1] // width, size), np.uint8)
    at = MADE_UP[kind]
    blocks[..., at : at + 4] = np.array([0.01, 0.02], np.float16).view(np.uint8)[: size - at]
    return blocks.reshape(*value.shape[:-1], -1)


def read_back(value: torch.Tensor, kind: str) -> torch.Tensor:
    """What is left of a matrix after this quantisation."""
    number = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(value.float().numpy(), number), number))
