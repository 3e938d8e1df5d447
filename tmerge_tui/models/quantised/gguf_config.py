"""What transformers leaves out when it makes a configuration of a GGUF file: whatever the file states is taken up."""

from __future__ import annotations

import math
from typing import Any

from tmerge_tui.models.quantised.gguf_file import Gguf

TIED_ANYWAY = ("falcon", "bloom")  # their converters write the head although it is the embedding
FIELDS = {  # of the file's metadata, below the architecture -> of the configuration, where its class has that field
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
SPECIAL = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
BIASES = {"attn_q.bias": "attention_bias", "ffn_up.bias": "mlp_bias"}  # tensors -> fields that make room for them
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
IN_THE_CONFIG = (FREQUENCIES, LONG, SHORT)  # tensors that no parameter has: rotary positions
# Gemma's largest models divide scores by the width of a head as hidden / heads, which no key says (llama.cpp likewise).
GEMMA_27B = {"gemma2": 46, "gemma3": 62}  # architecture -> layers
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def complete(config: Any, gguf: Gguf) -> None:
    """Changes `config`, which transformers has made of the file, to what the file says."""
    own = {key.partition(".")[2]: value for key, value in gguf.metadata.items() if key.startswith(gguf.architecture)}
    config.tie_word_embeddings = "output.weight" not in gguf.tensors or gguf.architecture in TIED_ANYWAY
    for key, field in FIELDS.items():
        if isinstance(own.get(key), int | float) and hasattr(config, field) and config.model_type != "gemma4_text":
            setattr(config, field, own[key])
    for field, key in SPECIAL.items():  # not those that the class has for its best known model
        setattr(config, field, gguf.metadata.get(f"tokenizer.ggml.{key}"))
    for tensor, field in BIASES.items():
        if hasattr(config, field):
            setattr(config, field, any(name.endswith(tensor) for name in gguf.tensors))
    if GEMMA_27B.get(gguf.architecture) == own.get("block_count") is not None:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    _rotary(config, own, gguf)


def _rotary(config: Any, own: dict[str, Any], gguf: Gguf) -> None:
    """theta, the share of a head that turns, and how long contexts are scaled."""
    known = getattr(config, "rope_parameters", None)
    if not isinstance(known, dict):
        return
    rope: dict[str, Any] = known.get("full_attention", known)  # of models with two kinds of layers, the full one
    if "rope.freq_base" in own and config.model_type != "gemma4_text":
        rope["rope_theta"] = float(own["rope.freq_base"])
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = own.get("rope.dimension_count")
    if turned and "partial_rotary_factor" in rope:
        rope["partial_rotary_factor"] = turned / width
    kind, length = own.get("rope.scaling.type"), own.get("rope.scaling.original_context_length")
    scaled: dict[str, Any] = {}
    if kind in ("linear", "yarn") and own.get("rope.scaling.factor"):
        scaled = {"rope_type": kind, "factor": float(own["rope.scaling.factor"])}
        if kind == "yarn" and length:
            scaled["original_max_position_embeddings"] = int(length)
    if LONG in gguf.tensors and SHORT in gguf.tensors:
        pair = {"long_factor": gguf.values(LONG).tolist(), "short_factor": gguf.values(SHORT).tolist()}
        scaled = {"rope_type": "longrope", **pair}
        if "rope.scaling.attn_factor" in own:
            scaled["attention_factor"] = float(own["rope.scaling.attn_factor"])
        if length:
            scaled["original_max_position_embeddings"] = config.original_max_position_embeddings = int(length)
    if FREQUENCIES in gguf.tensors:
        scaled = frequency_scaling(
            gguf.values(FREQUENCIES).tolist(), rope["rope_theta"], config.max_position_embeddings
        )
    rope.update(scaled)


def frequency_scaling(factors: list[float], theta: float, positions: int) -> dict[str, Any]:
    """The rotary parameters that divide the frequencies theta^(-2i/d) by `factors` [d/2]: Llama 3.1's where its formula
    gives these, and otherwise the factors themselves."""
    largest = max(factors)
    formula = {"rope_type": "llama3", "factor": round(largest, 4), **LLAMA3}
    made = [_llama3_factor(theta ** (-i / len(factors)), largest) for i in range(len(factors))]
    if all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(made, factors, strict=True)):
        return formula
    table = {"long_factor": factors, "short_factor": factors, "attention_factor": 1.0}
    return {"rope_type": "longrope", **table, "original_max_position_embeddings": positions}


def _llama3_factor(frequency: float, factor: float) -> float:
    """By what Llama 3.1 divides a frequency: nothing for short waves, `factor` for long ones, between them smoothly."""
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    turns = LLAMA3["original_max_position_embeddings"] * frequency / (2 * math.pi)  # within the original context
    if turns > high:
        return 1.0
    if turns < low:
        return factor
    share = (turns - low) / (high - low)
    return 1 / ((1 - share) / factor + share)
