"""FP8: eight bits a weight, with one scale for a block, a row, or the whole matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tmerge_tui.models.quantised.scheme import Settings


class Fp8:
    """W = W8 * scale; `quant_method: fp8` (fine-grained blocks) and `fbgemm_fp8` (rows)."""

    parts: ClassVar[tuple[str, ...]] = ("weight", "weight_scale_inv", "weight_scale")
    dropped: ClassVar[tuple[str, ...]] = ("input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale")

    def __init__(self, settings: Settings) -> None:
        self.block = settings.get("weight_block_size")

    @property
    def precision(self) -> str:
        return f"FP8{f' in blocks of {self.block[0]} x {self.block[1]}' if self.block else ''}, 8 bits a weight"

    def check(self) -> None:
        """Every setting is seen from the scales."""

    def shape(self, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        return parts["weight"]

    def plain(self, parts: Mapping[str, Tensor]) -> Tensor:
        scale = next((parts[name] for name in ("weight_scale_inv", "weight_scale") if name in parts), None)
        if scale is None:
            raise ValueError("an FP8 matrix has no scale beside it")
        return scaled(parts["weight"].float(), scale, self.block)


def scaled(value: Tensor, scale: Tensor, block: tuple[int, int] | None = None) -> Tensor:
    """`value` [out, in] times a scale: of everything, of rows [out, 1], of groups of a row [out, groups], or of blocks
    [out / b0, in / b1], the last ones cut short where `block` [b0, b1] does not divide."""
    rows, columns = value.shape
    factor = (scale.view(torch.uint8).float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()
    if factor.numel() == 1:
        return value * factor.reshape(())
    if factor.dim() == 1:
        factor = factor[:, None]
    high, wide = -(-rows // factor.shape[0]), -(-columns // factor.shape[1])
    if block is not None and factor.shape == (-(-rows // block[0]), -(-columns // block[1])):
        high, wide = block
    elif rows % factor.shape[0] or columns % factor.shape[1]:
        raise ValueError(f"scales of shape {list(scale.shape)} do not fit a matrix of {rows} x {columns}")
    return value * factor.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
