"""The frozen residual of adaptation: W = W_base + alpha mask Delta, with W_base to be trained (eqs. 15, 16).

alpha mask Delta is what fusion at alpha adds to the target's weight, so that training begins at the fused model. It is
a buffer: no gradient reaches it, no optimiser moves it, no checkpoint of the training stores it. Since it only adds,
the gradient of W_base is the gradient of W: without weight decay this is fine-tuning of the fused weights
(docs/adaptation.md), and a test holds it to that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tmerge_tui.engine.methods.transport_merge.fusion import Fusion, apply


class Residual(nn.Module):
    """W_base -> W_base + Delta on the fused rows (dim 0) or columns (dim 1)."""

    index: Tensor  # int64 [k]
    delta: Tensor  # fp32 [k, d_in], [d_out, k] as stored, or [k] of a bias: alpha times the mask times Delta

    def __init__(self, dim: int, index: Tensor, delta: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("delta", delta, persistent=False)

    def forward(self, base: Tensor) -> Tensor:
        return base.index_add(self.dim, self.index, self.delta)


@torch.no_grad()
def attach(model: nn.Module, fusion: Fusion, alpha: float, norm: str) -> list[Residual]:
    """Puts the residual of `fusion` at `alpha` on the target's projections: the model now computes as the fused one.

    The trainable weight of a projection is then `parametrizations.weight.original`, and `weight` the sum. The weights
    have to be float32 and in memory.
    """
    attached = []
    for fused in fusion:
        projection = fusion.projection(fused.layer, fused.kind)
        module: Any = model.get_submodule(projection.module)
        W, bias = projection.take(module.weight), None if fused.bias is None else projection.take(module.bias)
        new, new_bias = apply(W, bias, fused, alpha, norm)
        index = fused.index.to(W.device)
        dim, places = projection.locate(fused.axis, index)
        delta = (new - W).index_select(0 if fused.axis == "rows" else 1, index).float()
        changes = [("weight", dim, delta.T if projection.transposed else delta)]
        if bias is not None and new_bias is not None:
            changes.append(("bias", 0, (new_bias - bias)[index].float()))
        for name, along, change in changes:
            residual = Residual(along, places, change.contiguous())
            parametrize.register_parametrization(module, name, residual)
            attached.append(residual)
    return attached
