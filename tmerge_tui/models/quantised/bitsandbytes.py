"""bitsandbytes: eight bits with a scale a row, or four with a table of sixteen values and a scale for each block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tmerge_tui.models.quantised.scheme import Settings

ROW = 127.0  # the largest of eight bits
ABSMAX, TABLE = "weight.absmax", "weight.quant_map"
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))


class BitsAndBytes:
    parts: ClassVar[tuple[str, ...]] = ("weight", "SCB", ABSMAX, TABLE, *NESTED, *STATES)
    dropped: ClassVar[tuple[str, ...]] = ("weight_format",)

    def __init__(self, settings: Settings) -> None:
        self.four = bool(settings.get("load_in_4bit") or settings.get("_load_in_4bit"))
        self.kind = str(settings.get("bnb_4bit_quant_type") or "fp4").upper()

    @property
    def precision(self) -> str:
        return f"bitsandbytes {self.kind}, 4 bits a weight" if self.four else "bitsandbytes, 8 bits a weight"

    def check(self) -> None:
        """Every setting is stored beside the weights."""

    def shape(self, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        return parts["weight"] if "SCB" in parts else None  # four bits are stored as one long row

    def plain(self, parts: Mapping[str, Tensor]) -> Tensor:
        if "SCB" in parts:
            return parts["weight"].float() * (parts["SCB"].float() / ROW)[:, None]
        state = json.loads(bytes(next(parts[name] for name in STATES if name in parts).tolist()))
        scale = parts[ABSMAX].float()
        if NESTED[0] in parts:
            block = int(state["nested_blocksize"])
            table = parts[NESTED[1]].float()[parts[ABSMAX].long()]
            outer = parts[NESTED[0]].float().repeat_interleave(block)[: table.numel()]
            scale = table * outer + float(state["nested_offset"])
        pairs = parts["weight"].contiguous().view(torch.uint8).flatten().int()
        codes = torch.stack([pairs >> 4, pairs & 15], 1).flatten()  # the high half comes first
        values = parts[TABLE].float()[codes]
        count = torch.Size(state["shape"]).numel()
        return (values[:count] * scale.repeat_interleave(int(state["blocksize"]))[:count]).reshape(state["shape"])
