"""Projections of a checkpoint split by hand, the way each family's own forward pass reads them.

The oracle of the family tests: tensor names are written out, fused tensors are viewed as [heads, q k v, ...], and
nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

HEADS, KV = 4, 2

LLAMA = {kind: f"self_attn.{kind}_proj" for kind in "qkvo"} | {
    kind: f"mlp.{kind}_proj" for kind in ("gate", "up", "down")
}
NEOX = {
    "qkv": "attention.query_key_value",
    "o": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
BLOOM = {**NEOX, "qkv": "self_attention.query_key_value", "o": "self_attention.dense"}
GPT2 = {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
FUSED_MLP = {**{k: v for k, v in LLAMA.items() if k in "qkvo" or k == "down"}, "gate_up": "mlp.gate_up_proj"}

# names inside a layer, for families that do not say it as Llama does
NAMES: dict[str, dict[str, str]] = {
    "phi": {**LLAMA, "o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"},
    "opt": {**LLAMA, "o": "self_attn.out_proj", "up": "fc1", "down": "fc2"},
    "gptj": {**{k: f"attn.{k}_proj" for k in "qkv"}, "o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"},
    "gpt_neo": {
        **{k: f"attn.attention.{k}_proj" for k in "qkv"},
        "o": "attn.attention.out_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    "starcoder2": {**LLAMA, "up": "mlp.c_fc", "down": "mlp.c_proj"},
    "phi3": {
        "qkv": "self_attn.qkv_proj",
        "o": "self_attn.o_proj",
        "gate_up": "mlp.gate_up_proj",
        "down": "mlp.down_proj",
    },
    "glm": FUSED_MLP,
    "glm4": FUSED_MLP,
    "gpt2": GPT2,
    "openai-gpt": GPT2,
    "gpt_bigcode": GPT2,
    "mpt": {"qkv": "attn.Wqkv", "o": "attn.out_proj", "up": "ffn.up_proj", "down": "ffn.down_proj"},
    "gpt_neox": NEOX,
    "persimmon": {**NEOX, "qkv": "self_attn.query_key_value", "o": "self_attn.dense"},
    "bloom": BLOOM,
    "falcon": BLOOM,
    "codegen": {"qkv": "attn.qkv_proj", "o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"},
    "lfm2": {
        **LLAMA,
        "o": "self_attn.out_proj",
        "gate": "feed_forward.w1",
        "up": "feed_forward.w3",
        "down": "feed_forward.w2",
    },
    "jamba": {kind: name.replace("mlp.", "feed_forward.") for kind, name in LLAMA.items()},
}
GPT = ("gptj", "gpt_neo", "gpt2", "openai-gpt", "gpt_bigcode", "bloom", "falcon", "codegen")
PREFIX = {
    **{family: "transformer.h." for family in GPT},
    "mpt": "transformer.blocks.",
    "gpt_neox": "gpt_neox.layers.",
    "opt": "model.decoder.layers.",
    "gemma3": "language_model.model.layers.",
}


def _thirds(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = W.chunk(3)
    return q, k, v


def _shared(W: Tensor, kv: int) -> tuple[Tensor, Tensor, Tensor]:
    """All q, all k, all v with fewer key-value heads."""
    size = len(W) // (HEADS + 2 * kv)
    q, k, v = W.split([HEADS * size, kv * size, kv * size])
    return q, k, v


def _heads(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    each = W.view(HEADS, 3, -1, *W.shape[1:])
    q, k, v = (each[:, i].reshape(-1, *W.shape[1:]) for i in range(3))
    return q, k, v


def _groups(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    each = W.view(KV, HEADS // KV + 2, -1, *W.shape[1:])
    q, k, v = (part.reshape(-1, *W.shape[1:]) for part in (each[:, :-2], each[:, [-2]], each[:, [-1]]))
    return q, k, v


def _cores(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, v, k = (part.reshape(-1, *W.shape[1:]) for part in W.view(4, 3, -1, *W.shape[1:]).unbind(1))
    return q, k, v


QKV: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "gpt2": _thirds,
    "openai-gpt": _thirds,
    "mpt": _thirds,
    "phi3": lambda W: _shared(W, KV),
    "gpt_neox": _heads,
    "bloom": _heads,
    "persimmon": _heads,
    "falcon_rw": _heads,
    "gpt_bigcode_heads": _heads,
    "falcon_40b": _groups,
    "falcon_7b": lambda W: _shared(W, 1),
    "gpt_bigcode": lambda W: _shared(W, 1),
    "codegen": _cores,
}


def names(family: str) -> dict[str, str]:
    """What is stored in a layer, by kind: q, k and v of their own, or qkv; gate and up, or gate_up."""
    return NAMES.get(_base(family), LLAMA)


def _base(family: str) -> str:
    """The family of a variant: falcon of falcon_7b."""
    shorter = [name for name in NAMES if family.startswith(f"{name}_")]
    return family if family in NAMES or not shorter else max(shorter, key=len)


def split(family: str, tensors: Mapping[str, Tensor], layer: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    """kind -> (W [d_out, d_in], b [d_out] or None) of one layer of a file's tensors; kinds that are there."""
    base = _base(family)
    prefix = next((PREFIX[name] for name in (family, base) if name in PREFIX), "model.layers.")
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for kind, name in names(family).items():
        W = tensors.get(f"{prefix}{layer}.{name}.weight")
        if W is None:
            continue
        b = tensors.get(f"{prefix}{layer}.{name}.bias")
        if base in ("gpt2", "openai-gpt"):
            W = W.T
        if kind == "qkv":
            biases = (None,) * 3 if b is None else QKV[family](b)
            found |= dict(zip("qkv", zip(QKV[family](W), biases, strict=True), strict=True))
        elif kind == "gate_up":
            gate, up = W.chunk(2)
            found |= {"gate": (gate, None), "up": (up, None)}
        else:
            found[kind] = (W, b)
    return found
