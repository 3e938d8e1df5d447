"""Which space every dimension of every tensor of a checkpoint belongs to, read from the module tree.

As mergekit's `input_space` and `output_space`: what is done to a space, such as a permutation, has to be done to every
dimension in it. Modules and shapes decide, never the name of the model. A tensor that cannot be placed is listed with
its sizes and a note; none is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from tmerge_tui.models.families.rotary import has_table, is_rotary
from tmerge_tui.models.file_names import model_names
from tmerge_tui.models.layout import Heads, Layout, Projection, Space, StoredTensor
from tmerge_tui.models.projections import decoder_layers
from tmerge_tui.recipe import PROJECTIONS

NAMES = {
    "residual": "the residual stream, which every layer reads and adds to",
    "embedding": "token embeddings, where they are not as wide as the residual stream",
    "vocab": "tokens",
    "position": "learned positions",
    "heads.q": "channels of all query heads of a layer: what q writes and o reads",
    "heads.kv": "channels of all key-value heads of a layer: what k writes, and what v writes",
    "head": "channels of one head, shared by all heads of a layer",
    "mlp": "feed-forward neurons of a layer",
    "unknown": "not known, and nobody else's",
}
WRITES = {"q": "heads.q", "k": "heads.kv", "v": "heads.kv", "o": "residual", "gate": "mlp", "up": "mlp"} | {
    "down": "residual"
}
READS = {kind: "residual" for kind in PROJECTIONS} | {"o": "heads.q", "down": "mlp"}
WHOLE_MODEL = ("residual", "embedding", "vocab", "position")  # one for all layers


def with_spaces(layout: Layout, model: nn.Module, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a causal language model with all its tensors and heads; `shapes` are those of the files' tensors.

    The model may be on the meta device.
    """
    finder = _Finder(layout, model, config.get_text_config(), shapes)
    return replace(layout, tensors=tuple(finder.tensor(name) for name in shapes), heads=finder.heads)


@dataclass(frozen=True)
class _Finder:
    layout: Layout
    model: nn.Module
    text: Any
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def hidden(self) -> int:
        return int(self.text.hidden_size)

    @cached_property
    def names(self) -> dict[str, tuple[str, bool]]:
        return model_names(self.model, self.shapes)

    @cached_property
    def path(self) -> str:
        """Of the list of decoder layers."""
        return decoder_layers(self.model, self.layout.layers)[0]

    @cached_property
    def held(self) -> dict[str, list[Projection]]:
        """Tensor's name -> the projections in it."""
        found: dict[str, list[Projection]] = defaultdict(list)
        for p in sorted(self.layout.projections, key=lambda p: PROJECTIONS.index(p.kind)):
            for name in (p.weight, p.bias):
                if name is not None:
                    found[name].append(p)
        return found

    @cached_property
    def heads(self) -> tuple[Heads | None, ...]:
        return tuple(self._heads(layer) for layer in range(self.layout.layers))

    def _heads(self, layer: int) -> Heads | None:
        o, k = self.layout.get(layer, "o"), self.layout.get(layer, "k")
        some = o or k
        if some is None:
            return None
        queries = int(self.text.num_attention_heads)
        channels = o.d_in // queries if o else self.hidden // queries  # configs name it in many ways
        keys = k.d_out // channels if k else queries
        attention = self.model.get_submodule(some.module.rpartition(".")[0])
        return Heads(queries, keys, channels, is_rotary(self.table, attention, self.text, layer))

    @cached_property
    def table(self) -> bool:
        return has_table(self.model.get_submodule(self.path.rpartition(".")[0]))

    def tensor(self, name: str) -> StoredTensor:
        """What it is; unknown where what was found has not the file's shape."""
        shape, (inside, together) = self.shapes[name], self.names[name]
        layer = self._layer(inside)
        unknown = tuple((Space("unknown", size, layer),) for size in shape)
        if name in self.held:
            held = tuple(self.held[name])
            found = StoredTensor(name, "projection", self._of_projections(held, len(shape)), layer, held)
        elif together:
            note = "put together from others by transformers as it loads"
            found = StoredTensor(name, "other", unknown, layer, note=note)
        else:
            role, spaces = self._placed(inside, shape)
            found = StoredTensor(name, role, tuple((self._space(s, n, layer),) for s, n in spaces), layer)
            if role == "other" or found.shape != shape:
                found = StoredTensor(name, "other", unknown, layer, note=self._why(inside))
        return found

    def _space(self, name: str, size: int, layer: int | None) -> Space:
        return Space(name, size, None if name in WHOLE_MODEL else layer)

    def _of_projections(self, held: tuple[Projection, ...], ndim: int) -> tuple[tuple[Space, ...], ...]:
        out = tuple(self._space(WRITES[p.kind], p.d_out, p.layer) for p in held)
        if ndim == 1:
            return (out,)
        into = (self._space(READS[held[0].kind], held[0].d_in, held[0].layer),)
        return (into, out) if held[0].transposed else (out, into)

    def _placed(self, inside: str, shape: tuple[int, ...]) -> tuple[str, tuple[tuple[str, int], ...]]:
        """(role, (space, size) of each dimension) of what is no projection; without spaces when that is not known."""
        path, _, _ = inside.rpartition(".")
        module = self._module(path)
        stem, _, _ = self.path.rpartition(".")
        parent, _, _ = path.rpartition(".")
        width = shape[-1] if shape else 0
        if module is None:
            return "other", ()
        if module is self.embedding:
            return "embedding", (("vocab", shape[0]), (self._stream(width), width))
        if module is self.model.get_output_embeddings():  # type: ignore[operator]
            return "head", (("vocab", shape[0]), (self._stream(width), width))[: len(shape)]
        if parent == stem and isinstance(module, nn.Embedding) and width == self.hidden:
            return "position", (("position", shape[0]), ("residual", width))
        if parent == stem and isinstance(module, nn.Linear) and set(shape) == {self.hidden, self._narrow}:
            return "embedding", tuple((self._stream(size), size) for size in shape)
        if len(shape) == 1 and parent in (stem, f"{self.path}.{self._layer(inside)}") and width == self.hidden:
            return "norm", (("residual", width),)
        space = self._of_heads(path, width)
        return ("norm", ((space, width),)) if len(shape) == 1 and space else ("other", ())

    def _of_heads(self, path: str, width: int) -> str:
        """The space that a norm of queries or keys is in: of all of them, or of one head; empty when it is no such."""
        layer = self._layer(f"{path}.")
        heads = None if layer is None else self.heads[layer]
        if layer is None or heads is None:
            return ""
        attention = next(p for p in self.layout.projections if p.layer == layer and p.kind in ("o", "k"))
        block = attention.module.rpartition(".")[0] + "."
        first = path.removeprefix(block)[:1] if path.startswith(block) else ""
        whole = {"q": ("heads.q", heads.queries), "k": ("heads.kv", heads.keys)}.get(first)
        if whole is None or width not in (heads.channels, whole[1] * heads.channels):
            return ""
        return "head" if width == heads.channels else whole[0]

    @cached_property
    def embedding(self) -> nn.Module:
        return self.model.get_input_embeddings()  # type: ignore[operator]

    @cached_property
    def _narrow(self) -> int:
        """Width of a token's embedding."""
        return int(self.embedding.weight.shape[1])  # type: ignore[index]

    def _stream(self, width: int) -> str:
        return "residual" if width == self.hidden else "embedding"

    def _module(self, path: str) -> nn.Module | None:
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return None

    def _layer(self, inside: str) -> int | None:
        """Of a name in the model; None outside the decoder layers."""
        if self.path and not inside.startswith(f"{self.path}."):
            return None
        number = inside.removeprefix(f"{self.path}.").split(".")[0]
        return int(number) if number.isdigit() else None

    def _why(self, inside: str) -> str:
        path, _, leaf = inside.rpartition(".")
        module = self._module(path)
        if module is None or not hasattr(module, leaf):
            return "not in the model that transformers builds"
        stem = self.path.rpartition(".")[0]
        if stem and not inside.startswith(f"{stem}."):
            return "outside the text decoder"
        return f"{type(module).__name__}: its channels are in no known space"
