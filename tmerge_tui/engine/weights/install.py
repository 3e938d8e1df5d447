"""A loaded model with fused weights in it, for as long as a measurement takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook, SequentialHook
from torch import Tensor, nn

from tmerge_tui.engine.methods.transport_merge.fusion import FusedProjection, Fusion, apply
from tmerge_tui.models.layout import Projection


@contextmanager
def patched(model: Any, fusion: Fusion, alpha: float, norm: str, transported: bool = True) -> Iterator[None]:
    """Inside the block the target `model` computes with `apply(W, ...)`; afterwards every weight is back, bit for bit.

    Fused weights are rounded to the type of the target's file first, so that what is measured is what is written. Only
    the rows and columns that change are kept for the way back. Layers that are streamed from disk are changed each time
    they have been read.
    """
    own: list[tuple[Tensor, int, Tensor, Tensor]] = []  # tensor, axis, index, its own entries
    hooks: list[tuple[nn.Module, ModelHook]] = []
    try:
        for fused in fusion:
            projection = fusion.projection(fused.layer, fused.kind)
            module = model.get_submodule(projection.module)
            if module.weight.is_meta:
                hooks.append((module, module._hf_hook))
                mixing = _Mix(fusion, fused.layer, fused.kind, (alpha, norm, transported))
                module._hf_hook = SequentialHook(module._hf_hook, mixing)
                continue
            for tensor, axis, index, entries in _changes(module, projection, fused, alpha, norm, transported):
                own.append((tensor, axis, index, tensor.detach().index_select(axis, index)))
                tensor.detach().index_copy_(axis, index, entries)
        yield
    finally:
        for tensor, axis, index, entries in reversed(own):
            tensor.detach().index_copy_(axis, index, entries)
        for module, hook in reversed(hooks):
            module._hf_hook = hook


class _Mix(ModelHook):
    """Changes the weights of a streamed layer after accelerate has read them and before the layer runs."""

    def __init__(self, fusion: Fusion, layer: int, kind: str, how: tuple[float, str, bool]) -> None:
        self.fusion, self.layer, self.kind, self.how = fusion, layer, kind, how

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        fused, projection = self.fusion.fused(self.layer, self.kind), self.fusion.projection(self.layer, self.kind)
        for name, (tensor, axis, index, entries) in zip(
            ("weight", "bias"), _changes(module, projection, fused, *self.how), strict=False
        ):
            # a copy: what was read may still be the file, mapped into memory
            changed = tensor.detach().index_copy(axis, index, entries)
            setattr(module, name, nn.Parameter(changed, requires_grad=False))
        return args, kwargs


def _changes(
    module: Any, projection: Projection, fused: FusedProjection, alpha: float, norm: str, transported: bool
) -> list[tuple[Tensor, int, Tensor, Tensor]]:
    """(tensor, axis, index, new entries) of a projection's weight, and of its bias when that is fused."""
    index = fused.index.to(module.weight.device)
    dim, places = projection.locate(fused.axis, index)
    with torch.no_grad():
        bias = projection.take(module.bias) if fused.bias is not None else None
        W, b = apply(projection.take(module.weight), bias, fused, alpha, norm, transported)

        def rounded(new: Tensor, like: Tensor) -> Tensor:
            return new.to(fused.stored).to(like.dtype)

        rows = W.index_select(0 if fused.axis == "rows" else 1, index)
        changes = [(module.weight, dim, places, rounded(rows.T if projection.transposed else rows, module.weight))]
        if b is not None:
            changes.append((module.bias, 0, places, rounded(b[index], module.bias)))
    return changes
