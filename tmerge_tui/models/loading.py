"""A runnable model on a device, whole or streamed layer by layer from its own files."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tmerge_tui import machine
from tmerge_tui.errors import MemoryShortage, ModelError, UsageError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.config import auto_class, build_on_meta, first_line, quiet, read_config
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.projections import decoder_layers
from tmerge_tui.quantities import size

SHARE = 0.6  # of the available main memory that weights may take when the recipe sets no budget


def pick_device(name: str) -> torch.device:
    """`auto` (the first of cuda, mps, cpu that is there), or the one asked for. Raises UsageError when that is not."""
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    there[:0] = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    asked = {"auto": there[0], "cuda": "cuda:0"}.get(name, name)
    if asked not in there:
        raise UsageError(f"device {name} is not on this machine", f"one of {', '.join(there)}", "use device: auto")
    return torch.device(asked)


def pick_dtype(name: str, device: torch.device, facts: ModelFacts, budget: int | None) -> tuple[torch.dtype, str]:
    """The type of the forward passes and why. `auto` is bfloat16 on a CUDA device, float32 elsewhere when the weights
    fit the budget (bytes; None is what `free_memory` says), and bfloat16 when they do not."""
    if name != "auto":
        return getattr(torch, name), f"{name}: as the recipe asks"
    if device.type == "cuda":
        return torch.bfloat16, "bfloat16: the forward pass runs on a GPU"
    budget = free_memory(device) if budget is None else budget
    need = facts.weight_bytes(torch.float32)
    if need <= budget:
        return torch.float32, f"float32: its weights ({size(need)}) fit the memory of {size(budget)}"
    return torch.bfloat16, f"bfloat16: float32 weights ({size(need)}) exceed the memory of {size(budget)}"


def free_memory(device: torch.device) -> int:
    """Bytes that weights may take on `device`: what a GPU has free, or 60 % of the main memory to be had."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(machine.memory().available * SHARE)


def load_model(facts: ModelFacts, device: torch.device, dtype: torch.dtype, memory: int | None, emit: Emit) -> Any:
    """The model in `dtype`, in evaluation mode, without gradients.

    `memory` is what weights may take in bytes; None is what `free_memory` says. Weights that exceed it stay in the
    checkpoint's own files: as many decoder layers as fit are loaded, the others are read anew in every forward pass,
    and a `Warned` says so. Raises ModelError when the weights do not fit the model, MemoryShortage when not even
    embeddings and one layer fit.
    """
    auto = auto_class(read_config(facts.folder, facts.name, facts.trust_remote_code))
    budget = free_memory(device) if memory is None else memory
    placed = {"": str(device)}
    resaved: tempfile.TemporaryDirectory[str] | None = None
    if facts.weight_bytes(dtype) > budget:
        placed = _streamed(facts, device, dtype, budget, emit)
        resaved = tempfile.TemporaryDirectory(prefix="tmerge-weights-")  # what is not read from the file as it stands
    try:
        with quiet():
            model, info = auto.from_pretrained(
                facts.folder,
                dtype=dtype,
                device_map=placed,
                local_files_only=True,
                offload_folder=resaved and resaved.name,
                trust_remote_code=facts.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
    except torch.OutOfMemoryError as error:
        raise MemoryShortage(
            f"{facts.name}: {size(facts.weight_bytes(dtype))} of weights do not fit {device}",
            "room for the weights",
            "set memory: in the recipe to less than is free, so that layers are streamed from disk",
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{facts.name} cannot be loaded: {first_line(error)}",
            "weights that fit config.json",
            "download the model again",
        ) from error
    wrong = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"]), *info["error_msgs"]]
    if wrong:
        # transformers would go on with random numbers in their place
        raise ModelError(
            f"{facts.name}: {len(wrong)} weights are missing or have another shape, first {sorted(wrong)[0]}",
            "a checkpoint that holds every weight of its model",
            "download the model again",
        )
    if resaved is not None:
        packed = sum(file.stat().st_size for file in Path(resaved.name).iterdir())
        if packed:
            emit(Warned(facts.name, f"{size(packed)} of packed weights are kept in {resaved.name} during the run"))
        weakref.finalize(model, resaved.cleanup)
    return model.eval().requires_grad_(False)


def _streamed(facts: ModelFacts, device: torch.device, dtype: torch.dtype, budget: int, emit: Emit) -> dict[str, str]:
    """Where each module goes: everything but decoder layers on the device, then as many layers as the budget leaves
    room for, beside one layer's room for those that pass through; the rest stays on disk."""
    config = read_config(facts.folder, facts.name, facts.trust_remote_code)
    model = build_on_meta(config, facts.name, facts.trust_remote_code)
    path, layers = decoder_layers(model, facts.layers)
    sizes = [sum(p.numel() for p in layer.parameters()) * dtype.itemsize for layer in layers]
    total, passing = facts.weight_bytes(dtype), max(sizes)
    outside = total - sum(sizes)
    if outside + passing > budget:
        raise MemoryShortage(
            f"{facts.name}: embeddings ({size(outside)}) and one layer ({size(passing)}) exceed "
            f"the memory of {size(budget)}",
            "room for them",
            "raise memory: in the recipe, use dtype: bfloat16, or a machine with more memory",
        )
    placed = {name: str(device) for name in _modules_outside(model, path)}
    used = outside + passing
    for index, layer in enumerate(sizes):
        used += layer
        placed[f"{path}.{index}"] = str(device) if used <= budget else "disk"
    streamed = sum(place == "disk" for place in placed.values())
    machine.return_freed_memory()
    emit(
        Warned(
            facts.name,
            f"weights of {size(total)} exceed the memory of {size(budget)}: {streamed} of {facts.layers} "
            f"layers are read from disk in every forward pass, which is slower",
        )
    )
    return placed


def _modules_outside(model: nn.Module, path: str) -> list[str]:
    """The topmost modules that neither hold the decoder layers nor are among them."""
    outside, prefix = [], ""
    for part in path.split("."):
        parent = model.get_submodule(prefix)
        outside += [f"{prefix}.{name}".lstrip(".") for name, _ in parent.named_children() if name != part]
        prefix = f"{prefix}.{part}".lstrip(".")
    return outside
