"""Small integers packed into larger ones, and rows of them scaled in groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDTHS = (2, 4, 8)


def check_bits(bits: int) -> None:
    """Raises ValueError for integers that would lie across the bounds of those they are packed into."""
    if bits not in WIDTHS:
        raise ValueError(f"{bits} bits a weight: 2, 4 or 8 are read")


def unpacked(packed: Tensor, bits: int, axis: int, order: Sequence[int] | None = None) -> Tensor:
    """Unsigned integers of so many `bits` (a divisor of 32), int32: each int32 of `packed` becomes 32 / bits along
    `axis`, the lowest bits first. `order`: where in their group each of them belongs. Raises ValueError for others."""
    check_bits(bits)
    if packed.dtype != torch.int32:
        raise ValueError(f"integers packed into {str(packed.dtype).removeprefix('torch.')}: int32 is read")
    count = 32 // bits
    places = list(range(count)) if order is None else sorted(range(count), key=lambda at: order[at])
    shifts = torch.tensor([bits * place for place in places], dtype=torch.int32)
    shape = list(packed.shape)
    parts = packed.unsqueeze(axis + 1) >> shifts.reshape([count if i == axis + 1 else 1 for i in range(len(shape) + 1)])
    shape[axis] *= count
    return (parts & (2**bits - 1)).reshape(shape)


def grouped(values: Tensor, groups: Tensor, size: int | None = None) -> Tensor:
    """`groups` [groups, n], one row for each input channel of `values` [in, n]: of `size` channels in turn."""
    rows = values.shape[0]
    return groups.repeat_interleave(size or -(-rows // groups.shape[0]), 0)[:rows]
