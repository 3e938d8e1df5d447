"""Models with random weights, in shapes that a benchmark asks for."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM


def random_llama(hidden: int, layers: int, vocab: int, groups: int | None = None) -> Any:
    """A Llama with heads of 64 channels, a third as many `groups` of keys unless said, and tied embeddings."""
    config = AutoConfig.for_model(
        "llama", hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=groups or max(1, hidden // 192), intermediate_size=hidden * 8 // 3, vocab_size=vocab,
        tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)
