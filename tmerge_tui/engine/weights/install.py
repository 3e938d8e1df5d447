"""An update in a loaded model, for as long as a measurement takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook, SequentialHook
from torch import Tensor, nn

from tmerge_tui.engine.weights.update import Change, Update
from tmerge_tui.errors import ModelError
from tmerge_tui.models.file_names import file_names

Place = tuple[Any, str]  # (module, name of its parameter)


@contextmanager
@torch.no_grad()
def installed(model: Any, update: Update) -> Iterator[None]:
    """Inside the block the target `model` computes with the update; afterwards every weight is back, bit for bit.

    New weights are rounded to the type of the target's file first, so that what is measured is what is written. Only
    the entries that change are kept for the way back. Layers that are streamed from disk are changed each time they
    have been read. Raises ModelError when a tensor of the update is no parameter of the model.
    """
    own: list[tuple[Tensor, Change]] = []  # with the entries to put back
    streamed: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    hooks: list[tuple[nn.Module, ModelHook]] = []
    try:
        for name, (module, attribute) in places(model, update.names).items():
            tensor = getattr(module, attribute).detach()
            if tensor.is_meta:
                streamed[module].append((attribute, name))
                continue
            change = _rounded(update, name, tensor)
            own.append((tensor, Change(_entries(tensor, change), change.dim, change.index)))
            _put(tensor, change)
        for module, names in streamed.items():
            hooks.append((module, module._hf_hook))
            module._hf_hook = SequentialHook(module._hf_hook, _Install(update, names))
        yield
    finally:
        for tensor, change in reversed(own):
            _put(tensor, change)
        for module, hook in reversed(hooks):
            module._hf_hook = hook


def places(model: Any, names: Sequence[str]) -> dict[str, Place]:
    """Tensor of the file -> where the running model keeps it. Raises ModelError for one that it does not have."""
    found: dict[str, Place] = {}
    in_model, _ = file_names(model, names)
    for runtime, name in in_model.items():
        path, _, attribute = runtime.rpartition(".")
        found[name] = (model.get_submodule(path), attribute)
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ModelError(
            f"{type(model).__name__} has no parameter for {len(lacking)} changed tensors, first {lacking[0]}",
            "tensors that the model keeps as its file has them",
            "this model cannot be merged in this version; please report its name",
        )
    return {name: found[name] for name in names}


class _Install(ModelHook):
    """Changes the weights of a streamed layer after accelerate has read them and before the layer runs."""

    def __init__(self, update: Update, names: Sequence[tuple[str, str]]) -> None:
        self.update, self.names = update, names

    @torch.no_grad()
    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for attribute, name in self.names:
            stored = getattr(module, attribute).detach()
            # a copy: what was read may still be the file, mapped into memory
            changed = stored.clone()
            _put(changed, _rounded(self.update, name, stored))
            setattr(module, attribute, nn.Parameter(changed, requires_grad=False))
        return args, kwargs


def _rounded(update: Update, name: str, stored: Tensor) -> Change:
    """The change as the file would hold it, in the type of the running model."""
    change = update.change(name, stored)
    values = change.values.to(update.target.info(name).dtype).to(stored)
    return Change(values, change.dim, None if change.index is None else change.index.to(stored.device))


def _entries(tensor: Tensor, change: Change) -> Tensor:
    """A copy of what the change will overwrite; of a whole tensor, in main memory."""
    if change.dim is None or change.index is None:
        return tensor.to("cpu", copy=True)
    return tensor.index_select(change.dim, change.index)


def _put(tensor: Tensor, change: Change) -> None:
    if change.dim is None or change.index is None:
        tensor.copy_(change.values)
    else:
        tensor.index_copy_(change.dim, change.index, change.values)
