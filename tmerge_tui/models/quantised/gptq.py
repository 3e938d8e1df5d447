"""GPTQ, and what packs as it does: W[i, o] = scale[g, o] (q[i, o] - zero[g, o]), g the group of input channel i."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from tmerge_tui.models.quantised.bits import check_bits, grouped, unpacked
from tmerge_tui.models.quantised.scheme import Settings

SECOND = "gptq_v2"  # the checkpoint format that stores zeros as they are; the first one stores them less one


class Gptq:
    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    dropped: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        self.bits = int(settings.get("bits") or 4)
        self.size = int(settings.get("group_size") or -1)
        self.format = str(settings.get("checkpoint_format") or settings.get("format") or "gptq")

    @property
    def precision(self) -> str:
        return f"GPTQ, {self.bits} bits a weight" + (f" in groups of {self.size}" if self.size > 0 else "")

    def check(self) -> None:
        check_bits(self.bits)
        if self.format not in ("gptq", SECOND):
            raise ValueError(f"its checkpoint format is {self.format}; gptq and {SECOND} are read")

    def shape(self, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        rows, columns = parts["qweight"]
        return columns, rows * 32 // self.bits

    def plain(self, parts: Mapping[str, Tensor]) -> Tensor:
        q = unpacked(parts["qweight"], self.bits, 0)
        zeros = unpacked(parts["qzeros"], self.bits, 1)
        if self.format != SECOND:
            zeros = (zeros + 1) & (2**self.bits - 1)  # as it was stored: less one, and cut to its bits
        scales = parts["scales"].float()
        zeros = zeros[:, : scales.shape[1]]
        if "g_idx" in parts:
            group = parts["g_idx"].long()
            scale, zero = scales[group], zeros[group]
        else:
            size = self.size if self.size > 0 else q.shape[0]
            scale, zero = grouped(q, scales, size), grouped(q, zeros, size)
        return (scale * (q - zero)).T
