"""A loaded model with fused weights in it, for as long as a measurement takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook, SequentialHook
from torch import Tensor, nn

from tmerge_tui.engine.fused import FusedProjection, Fusion, apply


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
            module = model.get_submodule(fusion.projection(fused.layer, fused.kind).module)
            if module.weight.is_meta:
                hooks.append((module, module._hf_hook))
                mixing = _Mix(fusion, fused.layer, fused.kind, (alpha, norm, transported))
                module._hf_hook = SequentialHook(module._hf_hook, mixing)
                continue
            for tensor, axis, index, entries in _changes(module, fused, alpha, norm, transported):
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
        fused = self.fusion.fused(self.layer, self.kind)
        for name, (tensor, axis, index, entries) in zip(
            ("weight", "bias"), _changes(module, fused, *self.how), strict=False
        ):
            # a copy: what was read may still be the file, mapped into memory
            changed = tensor.detach().index_copy(axis, index, entries)
            setattr(module, name, nn.Parameter(changed, requires_grad=False))
        return args, kwargs


def _changes(
    module: Any, fused: FusedProjection, alpha: float, norm: str, transported: bool
) -> list[tuple[Tensor, int, Tensor, Tensor]]:
    """(tensor, axis, index, new entries) of a projection's weight, and of its bias when that is fused."""
    bias = module.bias if fused.bias is not None else None
    dim, index = (0 if fused.axis == "rows" else 1), fused.index.to(module.weight.device)
    with torch.no_grad():
        news = apply(module.weight, bias, fused, alpha, norm, transported)
        return [
            (tensor, axis, index, new.index_select(axis, index).to(fused.stored).to(tensor.dtype))
            for tensor, new, axis in zip((module.weight, bias), news, (dim, 0), strict=True)
            if tensor is not None and new is not None
        ]
