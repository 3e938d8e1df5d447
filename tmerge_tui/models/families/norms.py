"""What a norm stands before or behind, by the names that families give it, and how it keeps its scale."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

SLOTS = {
    **dict.fromkeys(
        (
            "input_layernorm",
            "ln_1",
            "ln_attn",
            "norm_1",
            "self_attn_layer_norm",
            "attention_layernorm",
            "operator_norm",
        ),
        "attention.in",
    ),
    **dict.fromkeys(
        (
            "pre_feedforward_layernorm",
            "ln_2",
            "ln_mlp",
            "norm_2",
            "final_layer_norm",
            "feedforward_layernorm",
            "ffn_norm",
        ),
        "mlp.in",
    ),
    "post_self_attn_layernorm": "attention.out",
    "post_feedforward_layernorm": "mlp.out",
    "post_mlp_layernorm": "mlp.out",
}
AROUND = ("pre_feedforward_layernorm", "post_feedforward_layernorm")  # beside them, post-attention is what it says
OUTSIDE = {
    **dict.fromkeys(("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "embedding_norm"), "final"),
    "word_embeddings_layernorm": "embedding",
}
OFFSET = ("gemma", "gemma2", "gemma3", "gemma3_text", "nemotron")  # the file keeps scale - 1
SCALED = ("gemma", "gemma2", "gemma3", "gemma3_text")  # embeddings are multiplied by sqrt(hidden) as they are read


def norm_slot(leaf: str, siblings: Collection[str], layer: int | None, final: bool) -> str:
    """`attention.in`, `mlp.out`, `final` and so on of a norm called `leaf`; empty when the name is not known.

    `siblings` are the names of the norms in the same layer; `layer` is None outside of them. `final`: there is a norm
    behind the last layer. Without one, norms are of the stream itself (GPT, OPT-350M), not of what blocks read or add.
    """
    if layer is None:
        return OUTSIDE.get(leaf, "")
    if not final:
        return f"{SLOTS[leaf].split('.')[0]}.sum" if leaf in SLOTS else ""
    if leaf == "post_attention_layernorm":
        return "attention.out" if any(name in siblings for name in AROUND) else "mlp.in"
    return SLOTS.get(leaf, "")


def norm_offset(model_type: str) -> float:
    """What is added to the stored weight before it scales."""
    return 1.0 if model_type in OFFSET else 0.0


def embedding_scale(model_type: str, text: Any) -> float:
    """What embeddings are multiplied by as they are read."""
    if model_type in SCALED:
        return float(text.hidden_size) ** 0.5
    return float(getattr(text, "embedding_multiplier", 1.0))
