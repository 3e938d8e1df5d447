"""AWQ (its "gemm" layout): as GPTQ, with outputs packed instead of inputs, in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from tmerge_tui.models.quantised.bits import grouped, unpacked
from tmerge_tui.models.quantised.scheme import Settings

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs each four bits hold, from the lowest


class Awq:
    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    dropped: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        self.bits = int(settings.get("bits") or settings.get("w_bit") or 4)
        self.size = int(settings.get("group_size") or settings.get("q_group_size") or -1)
        self.layout = str(settings.get("version") or "gemm").lower()

    @property
    def precision(self) -> str:
        return f"AWQ, {self.bits} bits a weight" + (f" in groups of {self.size}" if self.size > 0 else "")

    def check(self) -> None:
        if self.layout != "gemm" or self.bits != 4:
            raise ValueError(f"its layout is {self.layout} with {self.bits} bits; gemm with 4 is read")

    def shape(self, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        rows, columns = parts["qweight"]
        return columns * 32 // self.bits, rows

    def plain(self, parts: Mapping[str, Tensor]) -> Tensor:
        q = unpacked(parts["qweight"], self.bits, 1, ORDER)
        zeros = unpacked(parts["qzeros"], self.bits, 1, ORDER)
        size = self.size if self.size > 0 else q.shape[0]
        scale, zero = grouped(q, parts["scales"].float(), size), grouped(q, zeros, size)
        return (scale * (q - zero)).T
