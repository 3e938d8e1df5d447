"""What families call their projections. A name counts only inside a decoder layer, and only on a linear layer."""

from __future__ import annotations

from collections.abc import Collection

LEAVES = {
    # Llama and everyone after it
    **{f"{kind}_proj": kind for kind in ("q", "k", "v", "o", "gate", "up", "down")},
    # feed-forward without a gate: OPT and Phi, GPT-J, GPT-NeoX with Bloom and Falcon, GPT-2 with StarCoder2
    "fc1": "up",
    "fc2": "down",
    "fc_in": "up",
    "fc_out": "down",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",
    "c_fc": "up",
    # feed-forward of LFM2
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}

# One tensor that holds several projections; the files of these layouts know in which order.
QKV = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
GATE_UP = ("gate_up_proj",)

# Names that say only "output": the attention's beside its inputs, the feed-forward's beside its own.
_OUTPUTS = ("out_proj", "dense", "c_proj")
_ATTENTION = ("q_proj", "v_proj", *QKV)


def kind_of(leaf: str, siblings: Collection[str]) -> str | None:
    """The projection that a linear layer called `leaf` is among `siblings`, the names in the same block; else None."""
    if leaf in _OUTPUTS:
        if any(name in siblings for name in _ATTENTION):
            return "o"
        return "down" if leaf == "c_proj" and "c_fc" in siblings else None
    return LEAVES.get(leaf)
