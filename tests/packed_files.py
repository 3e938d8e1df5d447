"""Model folders with packed weights, packed entry by entry as each format documents it; what is left of each weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import edit_config

Packed = tuple[dict[str, Tensor], Tensor]  # endings of stored names -> tensors, and the weight they stand for
GROUP = 16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def as_packed(folder: Path, kind: str) -> dict[str, Tensor]:
    """Packs every linear layer of a model folder but the head; every weight as it is to be read."""
    settings, pack = KINDS[kind]
    stored: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    file = folder / "model.safetensors"
    for name, value in load_file(file).items():
        if value.dim() != 2 or "embed" in name or "lm_head" in name:
            stored[name] = left[name] = value
            continue
        parts, left[name] = pack(value)
        stored |= {name.removesuffix("weight") + ending: part.clone().contiguous() for ending, part in parts.items()}
    save_file(stored, file, {"format": "pt"})
    edit_config(folder, quantization_config=settings)
    return left


def pack_ints(values: Tensor, bits: int, axis: int, order: Sequence[int] | None = None) -> Tensor:
    """Unsigned integers along an axis into int32, one by one; `order[i]` is the one that goes to the i-th place."""
    count = 32 // bits
    rows = values.movedim(axis, -1)
    out = torch.zeros(*rows.shape[:-1], -(-rows.shape[-1] // count), dtype=torch.int64)
    for at in range(rows.shape[-1]):
        place = at % count if order is None else list(order).index(at % count)
        out[..., at // count] |= rows[..., at].long() << (bits * place)
    out = torch.where(out >= 2**31, out - 2**32, out)
    return out.to(torch.int32).movedim(-1, axis)


def _integers(value: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(q [in, out], zeros, scales [groups, out]) of a weight [out, in], asymmetric."""
    rows = value.T.float()
    groups = rows.reshape(-1, GROUP, rows.shape[1])
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / (2**bits - 1)).half()
    zeros = (-low / scales.float()).round().clamp(0, 2**bits - 1).int()
    q = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 2**bits - 1).int()
    return q.reshape(rows.shape), zeros, scales


def _weight(q: Tensor, zeros: Tensor, scales: Tensor, group: Sequence[int]) -> Tensor:
    """W[o, i], entry by entry."""
    out = torch.empty(q.shape[1], q.shape[0])
    for i, g in enumerate(group):
        out[:, i] = scales[g].float() * (q[i] - zeros[g])
    return out


def _gptq(bits: int, second: bool = False, shuffled: bool = False) -> Callable[[Tensor], Packed]:
    def pack(value: Tensor) -> Packed:
        q, zeros, scales = _integers(value, bits)
        group = [i // GROUP for i in range(q.shape[0])]
        if shuffled:
            group = group[1:] + group[:1]
        written = zeros if second else (zeros - 1) % 2**bits
        parts = {"qweight": pack_ints(q, bits, 0), "qzeros": pack_ints(written, bits, 1), "scales": scales}
        return {**parts, "g_idx": torch.tensor(group, dtype=torch.int32)}, _weight(q, zeros, scales, group)

    return pack


def _awq(value: Tensor) -> Packed:
    q, zeros, scales = _integers(value, 4)
    parts = {"qweight": pack_ints(q, 4, 1, AWQ_ORDER), "qzeros": pack_ints(zeros, 4, 1, AWQ_ORDER), "scales": scales}
    return parts, _weight(q, zeros, scales, [i // GROUP for i in range(q.shape[0])])


def _bnb8(value: Tensor) -> Packed:
    scale = value.float().abs().amax(1)
    q = (value.float() / scale[:, None] * 127).round().to(torch.int8)
    return {"weight": q, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}, q * scale[:, None] / 127


def _bnb4(nested: bool, block: int = 64) -> Callable[[Tensor], Packed]:
    table = torch.tensor([-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0])

    def pack(value: Tensor) -> Packed:
        flat = value.float().flatten()
        scales = torch.stack([part.abs().max() for part in flat.split(block)])
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": block,
            "dtype": "bfloat16",
            "shape": list(value.shape),
        }
        parts = {"weight.absmax": scales, "weight.quant_map": table}
        if nested:
            mean, outer = float(scales.mean()), torch.linspace(-1, 1, 256)
            state |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": mean}
            size = torch.stack([part.abs().max() for part in (scales - mean).split(8)])
            codes = torch.tensor(
                [int((outer - (s - mean) / size[i // 8]).abs().argmin()) for i, s in enumerate(scales)]
            )
            scales = torch.stack([outer[c] * size[i // 8] + mean for i, c in enumerate(codes)])
            parts |= {
                "weight.absmax": codes.to(torch.uint8),
                "weight.nested_absmax": size,
                "weight.nested_quant_map": outer,
            }
        q = [int((table - x / scales[i // block]).abs().argmin()) for i, x in enumerate(flat)]
        parts["weight"] = torch.tensor([16 * q[i] + q[i + 1] for i in range(0, len(q), 2)], dtype=torch.uint8)[:, None]
        text = json.dumps(state).encode()
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        left = torch.stack([table[c] * scales[i // block] for i, c in enumerate(q)])
        return parts, left.reshape(value.shape)

    return pack


def _ct_float(value: Tensor) -> Packed:
    scale = value.float().abs().amax(1, keepdim=True) / 448
    q = (value.float() / scale).to(torch.float8_e4m3fn)
    return {
        "weight": q,
        "weight_scale": scale.bfloat16(),
        "input_scale": torch.ones(1),
    }, q.float() * scale.bfloat16().float()


def _ct_int8(value: Tensor) -> Packed:
    scale = value.float().abs().amax(1, keepdim=True) / 100
    zero = torch.full_like(scale, 7).to(torch.int8)
    q = (value.float() / scale + 7).round().clamp(-128, 127).to(torch.int8)
    return {"weight": q, "weight_scale": scale, "weight_zero_point": zero}, (q.float() - 7) * scale


def _ct_packed(bits: int, symmetric: bool, shuffled: bool = False) -> Callable[[Tensor], Packed]:
    def pack(value: Tensor) -> Packed:
        q, zeros, scales = _integers(value, bits)
        half = 2 ** (bits - 1)
        if symmetric:
            zeros = torch.full_like(zeros, half)
        group = [i // GROUP for i in range(q.shape[0])]
        if shuffled:
            group = group[5:] + group[:5]
        parts = {
            "weight_packed": pack_ints(q.T, bits, 1),
            "weight_scale": scales.T,
            "weight_shape": torch.tensor(value.shape),
        }
        if not symmetric:
            parts["weight_zero_point"] = pack_ints(zeros.T, bits, 0)
        if shuffled:
            parts["weight_g_idx"] = torch.tensor(group, dtype=torch.int32)
        return parts, _weight(q, zeros, scales, group)

    return pack


def _ct(form: str, kind: str, bits: int, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind, **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def _gptq_settings(bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, **more}


BNB = {"quant_method": "bitsandbytes"}
KINDS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Packed]]] = {
    "gptq 4": (_gptq_settings(4), _gptq(4)),
    "gptq 8": (_gptq_settings(8), _gptq(8)),
    "gptq 2, act order": (_gptq_settings(2, desc_act=True), _gptq(2, shuffled=True)),
    "gptq v2": (_gptq_settings(4, checkpoint_format="gptq_v2"), _gptq(4, second=True)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, _awq),
    "bnb 8": ({**BNB, "load_in_8bit": True}, _bnb8),
    "bnb 4": ({**BNB, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, _bnb4(False)),
    "bnb 4, nested": ({**BNB, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, _bnb4(True)),
    "ct fp8": (_ct("float-quantized", "float", 8, strategy="channel"), _ct_float),
    "ct int8": (_ct("int-quantized", "int", 8, strategy="channel"), _ct_int8),
    "ct w4": (_ct("pack-quantized", "int", 4, strategy="group", group_size=GROUP), _ct_packed(4, True)),
    "ct w4, zeros": (_ct("pack-quantized", "int", 4, strategy="group", group_size=GROUP), _ct_packed(4, False)),
    "ct w8, act order": (
        _ct("pack-quantized", "int", 8, strategy="group", group_size=GROUP),
        _ct_packed(8, True, True),
    ),
}
SAID = {
    "gptq 4": "GPTQ, 4 bits a weight in groups of 16",
    "awq": "AWQ, 4 bits a weight in groups of 16",
    "bnb 8": "bitsandbytes, 8 bits a weight",
    "bnb 4": "bitsandbytes NF4, 4 bits a weight",
    "ct fp8": "compressed-tensors float-quantized, FP8, 8 bits a weight",
    "ct w4": "compressed-tensors pack-quantized, int4, 4 bits a weight in groups of 16",
}
