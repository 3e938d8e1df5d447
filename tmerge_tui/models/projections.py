"""Which modules of a model are its q, k, v, o, gate, up and down, read from the module tree of every layer.

Names and shapes decide, never the name of the model: a linear layer under one of the names of `families.names` inside
one decoder layer. Tensors that hold several projections are split as `families` says. Layers may differ (hybrids): what
a layer lacks, or holds in a layout that is not known, is left out of it and noted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tmerge_tui.errors import ModelError
from tmerge_tui.models.families.fused_gate_up import split_gate_up
from tmerge_tui.models.families.fused_qkv import split_qkv
from tmerge_tui.models.families.linear import Linear, linear_of
from tmerge_tui.models.families.names import GATE_UP, QKV, kind_of
from tmerge_tui.models.file_names import file_names
from tmerge_tui.models.layout import Block, Layout, Projection
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import FEED_FORWARD, PROJECTIONS

_HINT = "choose a transformer decoder such as a Llama, Mistral, Qwen or Gemma; `tmerge models` lists the families"


@dataclass(frozen=True)
class Matching:
    kinds: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A projection within its layer."""

    name: str  # path of the module in the layer
    d_out: int
    d_in: int
    biased: bool
    transposed: bool
    block: Block | None = None


def find_projections(model: nn.Module, config: Any, tensor_names: Collection[str]) -> Layout:
    """The layout of a causal language model; a model on the meta device is enough.

    `tensor_names` are those of the checkpoint's files. Raises ModelError when the decoder layers cannot be told, when
    no layer has a projection, and when a projection's weight is not in the files.
    """
    text = config.get_text_config()
    depth = int(text.num_hidden_layers)
    path, layers = decoder_layers(model, depth)
    in_files, assembled = file_names(model, tensor_names)
    found: list[Projection] = []
    notes: dict[str, list[int]] = defaultdict(list)  # note -> layers
    missing: list[str] = []
    for index, layer in enumerate(layers):
        parts, odd = _parts(layer, text)
        for kind in PROJECTIONS:
            if kind not in parts:
                continue
            part = parts[kind]
            module = f"{path}.{index}.{part.name}" if path else f"{index}.{part.name}"
            names = [f"{module}.weight", *([f"{module}.bias"] if part.biased else [])]
            if any(name in assembled for name in names):
                odd.append(f"{part.name}: put together by transformers from other tensors; {kind} is left as it is")
                continue
            missing += [name for name in names if name not in in_files]
            weight, bias = [*(in_files.get(name, name) for name in names), None][:2]
            assert weight is not None
            found.append(
                Projection(index, kind, module, weight, bias, part.d_out, part.d_in, part.block, part.transposed)
            )
        for note in odd:
            notes[note].append(index)
    lines = tuple(f"{_layers(where, depth)}: {note}" for note, where in notes.items())
    if not found:
        raise ModelError(
            "no q, k, v, o, gate, up or down projection in any layer" + "".join(f"\n    {n}" for n in lines),
            "linear layers under the names of a known family, such as q_proj, k_proj, v_proj, o_proj",
            _HINT,
        )
    if missing:
        raise ModelError(
            f"{len(missing)} projection tensors are not in the checkpoint under the model's own names, "
            f"first {missing[0]!r}",
            "a checkpoint as save_pretrained of the installed transformers writes it",
            "load the model in transformers and save it again, then name the new folder",
        )
    return Layout(depth, tuple(found), lines)


def match(layouts: Pair[Layout], kinds: Sequence[str]) -> Matching:
    """The `kinds` that at least one layer of both models has; notes say what is skipped, where and why.

    A kind may be missing from some layers: those target layers stay as they are, those source layers give nothing.
    Raises ModelError when no kind is left.
    """
    shared, notes = [], []
    for kind in kinds:
        lacks = []
        for role, layout in layouts.items():
            missing = [layer for layer in range(layout.layers) if layout.get(layer, kind) is None]
            if len(missing) == layout.layers:
                lacks.append(role)
            elif missing:
                effect = "left as they are" if role == "target" else "give nothing"
                notes.append(f"{kind}: {role} {_layers(missing, layout.layers)} without it: {effect}")
        if lacks:
            notes = [note for note in notes if not note.startswith(f"{kind}: ")]
            notes.append(f"{kind}: skipped, no {kind} projection in the {' and the '.join(lacks)}")
        else:
            shared.append(kind)
    for role, layout in layouts.items():
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


def _parts(layer: nn.Module, text: Any) -> tuple[dict[str, _Part], list[str]]:
    """(kind -> its part of the layer, notes on what was found and cannot be used)."""
    notes: list[str] = []
    candidates: dict[str, list[tuple[str, Linear]]] = defaultdict(list)
    fused: list[tuple[str, Linear]] = []
    odd: list[str] = []
    experts = [name for name, _ in layer.named_modules() if "experts" in name.rpartition(".")[2]]
    mixtures = tuple(f"{_parent(name)}." for name in experts)  # the block that also holds the router
    recurrent = [_parent(name) for name, module in layer.named_modules() if isinstance(module, nn.Conv1d)]
    for name, module in layer.named_modules():
        parent, _, leaf = name.rpartition(".")
        weight = getattr(module, "weight", None)
        if name.startswith(mixtures) or parent in recurrent:
            continue
        linear = linear_of(module)
        kind = kind_of(leaf, _children(layer, parent)) if linear else None
        if experts and (kind in FEED_FORWARD or leaf in GATE_UP):
            continue
        if linear and kind:
            candidates[kind].append((name, linear))
        elif linear and leaf in (*QKV, *GATE_UP):
            fused.append((name, linear))
        elif isinstance(weight, nn.Parameter) and weight.ndim >= 2:
            odd.append(f"{name} ({type(module).__name__} {' x '.join(map(str, weight.shape))})")
    if experts:
        notes.append(f"{experts[0]}: mixture of experts, not supported yet; gate, up and down are left as they are")
    notes += [f"{name}: recurrent, not attention; left as it is" for name in dict.fromkeys(recurrent)]
    if odd:
        notes.append(f"{', '.join(odd)}: no projection; left as it is")
    for kind, several in candidates.items():
        if len(several) > 1:
            notes.append(f"{len(several)} modules could be {kind} ({', '.join(n for n, _ in several)}): none is used")
    plain = {
        kind: _Part(name, linear.d_out, linear.d_in, linear.biased, linear.transposed)
        for kind, ((name, linear), *others) in candidates.items()
        if not others
    }
    parts, unknown = _split(plain, fused, text)
    for kind, why in _misfits(parts).items():
        notes.append(f"{parts.pop(kind).name}: {why}, not supported yet")
    return parts, notes + unknown


def _split(
    plain: Mapping[str, _Part], fused: Sequence[tuple[str, Linear]], text: Any
) -> tuple[dict[str, _Part], list[str]]:
    """The plain parts with those of the fused tensors, which are sized by the projections that read their outputs."""
    parts, notes = dict(plain), []
    for name, linear in fused:
        if name.rpartition(".")[2] in GATE_UP:
            out, reads = "down", "gate and up"
        else:
            out, reads = "o", "q, k and v"
        blocks: dict[str, Block] | str
        if out not in plain:
            blocks = f"the {out} projection that reads its {reads} is not known"
        elif out == "down":
            blocks = split_gate_up(linear.d_out, plain[out].d_in)
        else:
            blocks = split_qkv(str(text.model_type), linear.d_out, int(text.num_attention_heads), plain[out].d_in)
        if isinstance(blocks, str) or any(kind in plain for kind in blocks):
            why = blocks if isinstance(blocks, str) else f"there are {reads} beside it"
            notes.append(f"{name}: {why}; left as it is")
            continue
        for kind, block in blocks.items():
            parts[kind] = _Part(name, block.size, linear.d_in, linear.biased, linear.transposed, block)
    return parts, notes


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _children(layer: nn.Module, path: str) -> set[str]:
    return {name for name, _ in layer.get_submodule(path).named_children()}


def _misfits(parts: Mapping[str, _Part]) -> dict[str, str]:
    """Kinds whose shapes do not fit the others of the layer, and why: a sign of a layout that is not known."""
    wrong: dict[str, str] = {}
    for group in (("q", "k", "v"), ("up", "gate")):
        first: str = next((kind for kind in group if kind in parts), "")
        for kind in (kind for kind in group if kind in parts):
            if parts[kind].d_in != parts[first].d_in:
                wrong[kind] = f"{parts[kind].d_in} inputs where {first} has {parts[first].d_in}"
    if "gate" in parts and "up" in parts and parts["gate"].d_out != parts["up"].d_out:
        wrong["gate"] = f"{parts['gate'].d_out} outputs where up has {parts['up'].d_out}"
    for out, back in (("q", "o"), ("up", "down")):
        if out in parts and back in parts and parts[out].d_out != parts[back].d_in:
            wrong[out] = f"{parts[out].d_out} outputs where {back} has {parts[back].d_in} inputs"
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
