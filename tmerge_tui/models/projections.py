"""Which linear layers of a model are its q, k, v, o, gate, up and down, read from the module tree of every layer.

A projection is a plain `nn.Linear`, stored out x in, under one of the names below inside one decoder layer. Layers may
differ (hybrids): what a layer lacks, or holds in a layout that is not plain, is left out of it and noted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn

from tmerge_tui.errors import ModelError
from tmerge_tui.recipe import FEED_FORWARD, PROJECTIONS

SIDES = (
    *("qkv.in", "q.out", "k.out", "v.out", "o.in", "o.out"),
    *("mlp.in", "gate.out", "up.out", "down.in", "down.out"),
)
_SHARED_IN = {"q": "qkv.in", "k": "qkv.in", "v": "qkv.in", "gate": "mlp.in", "up": "mlp.in"}

_LEAVES = {f"{kind}_proj": kind for kind in PROJECTIONS}
_HINT = "this version merges models whose projections are separate linear layers, such as Llama, Mistral, Qwen or Gemma"


def side_of(kind: str, end: Literal["in", "out"]) -> str:
    """The tensor that enters or leaves a projection; q, k, v share what enters them, and so do gate and up."""
    return _SHARED_IN.get(kind, f"{kind}.in") if end == "in" else f"{kind}.out"


@dataclass(frozen=True)
class Projection:
    """One linear layer. `module` is its path in the runtime model; `weight` [d_out, d_in] and `bias` [d_out] are names
    in the checkpoint's files."""

    layer: int
    kind: str
    module: str
    weight: str
    bias: str | None
    d_out: int
    d_in: int


@dataclass(frozen=True)
class Layout:
    """The projections of a model, at most one of each kind in a layer, and what was found but cannot be used."""

    layers: int
    projections: tuple[Projection, ...]
    notes: tuple[str, ...]

    def get(self, layer: int, kind: str) -> Projection | None:
        return self._places.get((layer, kind))

    @cached_property
    def _places(self) -> dict[tuple[int, str], Projection]:
        return {(p.layer, p.kind): p for p in self.projections}

    def kinds(self, layer: int) -> tuple[str, ...]:
        return tuple(kind for kind in PROJECTIONS if self.get(layer, kind))

    def width(self, layer: int, side: str) -> int | None:
        """Channels n of a side, or None where the layer has no projection with that side."""
        for kind in PROJECTIONS:
            p = self.get(layer, kind)
            if p is not None and side in (side_of(kind, "in"), side_of(kind, "out")):
                return p.d_in if side == side_of(kind, "in") else p.d_out
        return None

    def sides(self, layer: int, kinds: Iterable[str]) -> tuple[str, ...]:
        """The distinct sides of those of `kinds` that the layer has, in the order of SIDES."""
        there = [kind for kind in kinds if self.get(layer, kind)]
        wanted = {side_of(kind, "in") for kind in there} | {side_of(kind, "out") for kind in there}
        return tuple(side for side in SIDES if side in wanted)


@dataclass(frozen=True)
class Matching:
    kinds: tuple[str, ...]
    notes: tuple[str, ...]


def find_projections(model: nn.Module, config: Any, tensor_names: Collection[str]) -> Layout:
    """The layout of a causal language model; a model on the meta device is enough.

    `tensor_names` are those of the checkpoint's files. Raises ModelError when the decoder layers cannot be told, when
    no layer has a projection, and when a projection's weight is not in the files.
    """
    depth = int(config.get_text_config().num_hidden_layers)
    path, layers = decoder_layers(model, depth)
    found: list[Projection] = []
    notes: dict[str, list[int]] = defaultdict(list)  # note -> layers
    for index, layer in enumerate(layers):
        plain, odd = _plain_projections(layer)
        for note in odd:
            notes[note].append(index)
        for kind in PROJECTIONS:
            if kind in plain:
                name, linear = plain[kind]
                module = f"{path}.{index}.{name}" if path else f"{index}.{name}"
                bias = f"{module}.bias" if linear.bias is not None else None
                d_out, d_in = linear.weight.shape
                found.append(Projection(index, kind, module, f"{module}.weight", bias, d_out, d_in))
    lines = tuple(f"{_layers(where, depth)}: {note}" for note, where in notes.items())
    if not found:
        raise ModelError(
            "no separate q, k, v, o, gate, up or down projection in any layer" + "".join(f"\n    {n}" for n in lines),
            "linear layers named q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
            _HINT,
        )
    there = set(tensor_names)
    missing = [name for p in found for name in (p.weight, p.bias) if name is not None and name not in there]
    if missing:
        raise ModelError(
            f"{len(missing)} projection tensors are not in the checkpoint under the model's own names, "
            f"first {missing[0]!r}",
            "a checkpoint as save_pretrained of the installed transformers writes it",
            "load the model in transformers and save it again, then name the new folder",
        )
    return Layout(depth, tuple(found), lines)


def match(target: Layout, source: Layout, kinds: Sequence[str]) -> Matching:
    """The `kinds` that at least one layer of both models has; notes say what is skipped, where and why.

    A kind may be missing from some layers: those target layers stay as they are, those source layers give nothing.
    Raises ModelError when no kind is left.
    """
    shared, notes = [], []
    for kind in kinds:
        lacks = []
        for role, layout in (("target", target), ("source", source)):
            missing = [layer for layer in range(layout.layers) if layout.get(layer, kind) is None]
            if len(missing) == layout.layers:
                lacks.append(role)
            elif missing:
                effect = "left as they are" if role == "target" else "give nothing"
                notes.append(f"{kind}: {role} {_layers(missing, layout.layers)} without it: {effect}")
        if lacks:
            notes = [note for note in notes if not note.startswith(f"{kind}: ")]
            notes.append(f"{kind}: skipped, no separate {kind} projection in the {' and the '.join(lacks)}")
        else:
            shared.append(kind)
    for role, layout in (("target", target), ("source", source)):
        notes += [f"{role}, {note}" for note in layout.notes]
    if not shared:
        raise ModelError(
            f"source and target share none of the projections {', '.join(kinds)}"
            + "".join(f"\n    {note}" for note in notes),
            "at least one kind of projection in both models",
            "choose other transport.projections, or another pair of models",
        )
    return Matching(tuple(shared), tuple(notes))


def decoder_layers(model: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    """Path and modules of the one list of `depth` layers; lists inside a layer (experts) do not count, and in a model
    that also sees or hears only the text decoder does."""
    decoder: nn.Module = getattr(model, "get_decoder", lambda: model)() or model
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    lists = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    outer = [(n, m) for n, m in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        names = ", ".join(name for name, _ in outer) or "none"
        raise ModelError(f"lists of {depth} layers in the model: {names}", "exactly one list of decoder layers", _HINT)
    name, layers = outer[0]
    return ".".join(part for part in (prefix, name) if part), layers


def _plain_projections(layer: nn.Module) -> tuple[dict[str, tuple[str, nn.Linear]], list[str]]:
    """(kind -> (path in the layer, module), notes on what was found and cannot be used) of one layer."""
    notes: list[str] = []
    candidates: dict[str, list[tuple[str, nn.Linear]]] = defaultdict(list)
    odd: list[str] = []
    attention = {name.rpartition(".")[0] for name, _ in layer.named_modules() if name.endswith(("q_proj", "v_proj"))}
    experts = [name for name, _ in layer.named_modules() if "experts" in name.rpartition(".")[2]]
    mixtures = tuple(f"{name.rpartition('.')[0]}." for name in experts)  # the block that also holds the router
    for name, module in layer.named_modules():
        parent, _, leaf = name.rpartition(".")
        kind = "o" if leaf == "out_proj" and parent in attention else _LEAVES.get(leaf)
        weight = getattr(module, "weight", None)
        if name.startswith(mixtures) or (experts and kind in FEED_FORWARD):
            continue
        if kind is not None and isinstance(module, nn.Linear):
            candidates[kind].append((name, module))
        elif isinstance(weight, nn.Parameter) and weight.ndim >= 2:
            odd.append(f"{name} ({type(module).__name__} {' x '.join(map(str, weight.shape))})")
    if experts:
        notes.append(f"{experts[0]}: mixture of experts, not supported yet; gate, up and down are left as they are")
    if odd:
        notes.append(f"{', '.join(odd)}: not supported yet")
    for kind, several in candidates.items():
        if len(several) > 1:
            notes.append(f"{len(several)} modules could be {kind} ({', '.join(n for n, _ in several)}): none is used")
    plain = {kind: several[0] for kind, several in candidates.items() if len(several) == 1}
    for kind, why in _misfits({kind: linear for kind, (_, linear) in plain.items()}).items():
        notes.append(f"{plain.pop(kind)[0]}: {why}, not supported yet")
    return plain, notes


def _misfits(plain: dict[str, nn.Linear]) -> dict[str, str]:
    """Kinds whose shapes do not fit the others of the layer, and why: a sign of a layout that is not plain."""
    d_in = {kind: linear.in_features for kind, linear in plain.items()}
    d_out = {kind: linear.out_features for kind, linear in plain.items()}
    wrong: dict[str, str] = {}
    for group in (("q", "k", "v"), ("up", "gate")):
        first: str = next((kind for kind in group if kind in plain), "")
        for kind in (kind for kind in group if kind in plain):
            if d_in[kind] != d_in[first]:
                wrong[kind] = f"{d_in[kind]} inputs where {first} has {d_in[first]}"
    if "gate" in plain and "up" in plain and d_out["gate"] != d_out["up"]:
        wrong["gate"] = f"{d_out['gate']} outputs where up has {d_out['up']}"
    for out, back in (("q", "o"), ("up", "down")):
        if out in plain and back in plain and d_out[out] != d_in[back]:
            wrong[out] = f"{d_out[out]} outputs where {back} has {d_in[back]} inputs"
    return wrong


def _layers(where: Sequence[int], depth: int) -> str:
    """`all layers`, `layer 3`, `layers 0-2, 5`."""
    if len(where) == depth:
        return "all layers"
    ranges: list[list[int]] = []
    for layer in where:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return f"layer{'s' if len(where) > 1 else ''} {text}"
