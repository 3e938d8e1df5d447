"""compressed-tensors: matrices of FP8 or int8 beside their scales, or of two to eight bits packed into int32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from tmerge_tui.models.quantised.bits import check_bits, unpacked
from tmerge_tui.models.quantised.fp8 import scaled
from tmerge_tui.models.quantised.scheme import Settings

PACKED = "pack-quantized"
FORMATS = ("float-quantized", "int-quantized", "naive-quantized", PACKED, "dense", "mixed-precision")


class CompressedTensors:
    """W = scale (q - zero): `strategy` tensor, channel, group or block. Symmetric integers have no zero."""

    parts: ClassVar[tuple[str, ...]] = (
        *("weight", "weight_scale", "weight_zero_point"),
        *("weight_packed", "weight_shape", "weight_g_idx"),
    )
    dropped: ClassVar[tuple[str, ...]] = (
        *("input_scale", "input_zero_point", "output_scale", "output_zero_point"),
        *("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point"),
    )

    def __init__(self, settings: Settings) -> None:
        self.format = str(settings.get("format"))
        groups = list((settings.get("config_groups") or {}).values())
        self.weights: list[dict[str, Any]] = [group["weights"] for group in groups if group.get("weights")]
        self.formats = {self.format, *(str(group["format"]) for group in groups if group.get("format"))}

    @property
    def precision(self) -> str:
        how = " and ".join(dict.fromkeys(self._said())) or "no packed layers"
        return f"compressed-tensors {self.format}, {how}"

    def check(self) -> None:
        odd = sorted(self.formats - set(FORMATS))
        if odd:
            raise ValueError(f"its format is {odd[0]}; {', '.join(FORMATS)} are read")
        if PACKED in self.formats:
            check_bits(self._bits())

    def shape(self, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        if "weight_packed" not in parts:
            return parts["weight"]
        rows, columns = parts["weight_packed"]
        return rows, columns * 32 // self._bits()

    def plain(self, parts: Mapping[str, Tensor]) -> Tensor:
        scale, zero = parts["weight_scale"], parts.get("weight_zero_point")
        if "weight_packed" not in parts:
            value = parts["weight"].float()
        else:
            bits, shape = self._bits(), parts["weight_shape"].tolist()
            half = 2 ** (bits - 1)
            value = (unpacked(parts["weight_packed"], bits, 1)[:, : shape[1]] - half).float()
            if zero is not None and zero.dtype == torch.int32:
                zero = unpacked(zero, bits, 0)[: shape[0]] - half
        groups = parts.get("weight_g_idx")
        if groups is not None and bool((groups >= 0).all()):
            index = groups.long()
            return (value - (0 if zero is None else zero.float()[:, index])) * scale.float()[:, index]
        block = next((weights["block_structure"] for weights in self.weights if weights.get("block_structure")), None)
        if zero is not None:
            value = value - scaled(torch.ones_like(value), zero.float(), block)
        return scaled(value, scale, block)

    def _bits(self) -> int:
        found = {int(weights["num_bits"]) for weights in self.weights}
        if len(found) != 1:
            raise ValueError(f"its packed layers have {len(found)} widths; one is read")
        return found.pop()

    def _said(self) -> Iterator[str]:
        for weights in self.weights:
            kind = {"float": "FP", "int": "int"}.get(str(weights.get("type")), "")
            size = f" in groups of {weights['group_size']}" if (weights.get("group_size") or -1) > 0 else ""
            yield f"{kind}{weights['num_bits']}, {weights['num_bits']} bits a weight{size}"
