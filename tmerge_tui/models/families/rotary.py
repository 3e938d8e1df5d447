"""Which layers turn queries and keys by their position.

Rotary position embeddings show in the module tree: a module or an attribute of that name in the decoder or in the
layer's attention. Models that leave them out of some layers say so in an attribute of the attention; the two families
that only do it where a layer attends to everything do not, and are named here.
"""

from __future__ import annotations

from typing import Any

from torch import nn

SLIDING_ONLY = ("cohere2", "exaone4")  # where layers with a sliding window alternate with full ones: only the former


def has_table(decoder: nn.Module) -> bool:
    """Whether a module of the decoder makes sines and cosines for its attention."""
    return any("rotary" in type(module).__name__.lower() for module in decoder.modules())


def is_rotary(table: bool, attention: nn.Module, text: Any, layer: int) -> bool:
    """`table`: what `has_table` says of the decoder; `attention` is that of `layer`, `text` the decoder's config."""
    if not (table or hasattr(attention, "rotary_dim")):
        return False
    if getattr(text, "alibi", False) or not getattr(attention, "use_rope", True):
        return False
    if text.model_type in SLIDING_ONLY and getattr(text, "sliding_window", None) is not None:
        return text.layer_types[layer] == "sliding_attention"
    return True
