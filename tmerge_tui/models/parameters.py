"""Weights and biases of logical projections, read from a checkpoint."""

from __future__ import annotations

from torch import Tensor

from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import Projection


def read_weight(checkpoint: Checkpoint, projection: Projection, rows: Tensor | None = None) -> Tensor:
    """W [d_out, d_in] in the file's dtype, or the rows int64 [k] of it, which alone are read if stored out x in."""
    if projection.transposed:
        W = projection.take(checkpoint.read(projection.weight))
        return W if rows is None else W[rows]
    if projection.block is not None:
        own = projection.block.index()
        return checkpoint.read(projection.weight, rows=own if rows is None else own[rows])
    return checkpoint.read(projection.weight, rows=rows)


def read_bias(checkpoint: Checkpoint, projection: Projection) -> Tensor | None:
    """b [d_out] in the file's dtype, if there is one."""
    return None if projection.bias is None else projection.take(checkpoint.read(projection.bias))
