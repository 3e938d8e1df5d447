"""Which layers turn queries and keys by their position.

Rotary position embeddings show in the module tree: a module or an attribute of that name in the decoder or in the
layer's attention. Models that leave them out of some layers say so in an attribute of the attention; the two families
that only do it where a layer attends to everything do not, and are named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SLIDING_ONLY = ("cohere2", "exaone4")  # where layers with a sliding window alternate with full ones: only the former

# pairs are neighbouring channels, not channels half the turned width apart
INTERLEAVED = ("cohere", "cohere2", "codegen", "ernie4_5", "glm", "glm4", "gptj")
SLOPED = ("bloom", "mpt")  # each head has a slope of its own (ALiBi); Falcon says it in its config


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


def turned_pairs(model_type: str, text: Any, channels: int) -> Tensor:
    """int64 [pairs, 2]: the channels of a head that are turned together, from the fastest pair to the slowest.

    The others of its `channels` are not turned. `text` is the decoder's config.
    """
    width = getattr(text, "rotary_dim", None) or int(channels * _turned_share(text))
    if model_type in INTERLEAVED:
        return torch.arange(width).view(-1, 2)
    return torch.arange(width).view(2, -1).T


def is_sloped(model_type: str, text: Any) -> bool:
    """Whether a head's number decides how far it sees, so that heads cannot change places."""
    return model_type in SLOPED or bool(getattr(text, "alibi", False))


def _turned_share(text: Any) -> float:
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [
        rope,
        *(kind for kind in rope.values() if isinstance(kind, Mapping)),
    ]  # by type of layer, as Gemma 3 has it
    found = [kind["partial_rotary_factor"] for kind in kinds if kind.get("partial_rotary_factor") is not None]
    return float(found[0] if found else getattr(text, "partial_rotary_factor", None) or 1.0)
