"""The frozen residual of adaptation: W = W_base + alpha mask Delta, with W_base to be trained (eqs. 15, 16).

alpha mask Delta is what a merge adds to the target's weight, so that training begins at the merged model. It is a
buffer: no gradient reaches it, no optimiser moves it, no checkpoint of the training stores it. Since it only adds, the
gradient of W_base is the gradient of W: without weight decay this is fine-tuning of the merged weights
(docs/adaptation.md), and a test holds it to that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tmerge_tui.engine.weights.install import places
from tmerge_tui.engine.weights.update import Update


class Residual(nn.Module):
    """W_base -> W_base + Delta, on the rows (dim 0) or columns (dim 1) that change, or on all of it."""

    index: Tensor | None  # int64 [k]
    delta: Tensor  # fp32, as stored: alpha times the mask times Delta

    def __init__(self, dim: int | None, index: Tensor | None, delta: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("delta", delta, persistent=False)

    def forward(self, base: Tensor) -> Tensor:
        if self.dim is None or self.index is None:
            return base + self.delta
        return base.index_add(self.dim, self.index, self.delta)


@torch.no_grad()
def attach(model: nn.Module, update: Update) -> list[Residual]:
    """Puts the residual of `update` on the target's weights, tied ones at every place that they have: the model now
    computes as the merged one.

    The trainable weight of a module is then `parametrizations.weight.original`, and `weight` the sum. The weights have
    to be float32 and in memory.
    """
    attached = []
    for name, (module, attribute) in places(model, update.names).items():
        stored = getattr(module, attribute).detach()
        change = update.change(name, stored)
        index = None if change.index is None else change.index.to(stored.device)
        own = stored if change.dim is None or index is None else stored.index_select(change.dim, index)
        residual = Residual(change.dim, index, (change.values - own).float().contiguous())
        parameter = getattr(module, attribute)
        held = [
            (one, place)
            for one in model.modules()
            for place, p in one.named_parameters(recurse=False)
            if p is parameter
        ]
        for one, place in held:
            parametrize.register_parametrization(one, place, residual)
        attached.append(residual)
    return attached
