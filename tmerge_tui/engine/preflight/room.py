"""Room for a run and where it writes: disk, memory, and an output that is no part of what is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from tmerge_tui import machine
from tmerge_tui.engine.preflight.estimate import unpacked_bytes
from tmerge_tui.engine.prepared import Estimate, Party
from tmerge_tui.errors import RunFolderError
from tmerge_tui.hub.download import lacking_room
from tmerge_tui.hub.errors import cache_folder
from tmerge_tui.models.loading import free_memory
from tmerge_tui.quantities import size
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir


def output_problems(recipe: Recipe, needs: Estimate, parties: Sequence[Party]) -> list[str]:
    """What keeps the run folder from being written: its name, its place, the right to write there, the room."""
    output = Path(recipe.output)
    try:
        os.path.lexists(output) and output.stat()
        there = _existing(output)
    except OSError as error:
        return [f"output: {error.strerror or error}: {str(output)[:80]}; choose another output"]
    overlap = _overlapping(output, parties)
    if overlap:
        return [overlap]
    try:
        RunDir.usable(output)
    except RunFolderError as error:
        return [str(error)]
    if not os.access(there, os.W_OK):
        return [f"output: {there} is read-only, expected a folder to write in; choose another output"]
    return _disk(output, there, needs, parties)


def in_memory(recipe: Recipe, needs: Estimate, device: torch.device) -> tuple[list[str], list[str]]:
    """(what does not fit this machine, what fits only by streaming weights from disk): the figures are estimates."""
    cuda = device.type == "cuda"
    free = int(torch.cuda.mem_get_info(device)[0]) if cuda else machine.memory().available
    where = f"{size(free)} are free" + (f" on {device}" if cuda else "")
    problems, notes = [], []
    parts = needs.memory
    if parts.get("training", 0) > free:
        problems.append(
            f"adaptation: training takes about {size(parts['training'])} of memory, {where}; "
            "use adaptation.method: lora, a smaller batch_size or block_length, or a larger machine"
        )
    if parts.get("autoencoder", 0) > free:
        problems.append(
            f"ls_merge: its autoencoder takes about {size(parts['autoencoder'])} of memory, {where}; "
            "use a smaller ls_merge.width, window or batch_size"
        )
    if parts.get("transport", 0) > free:
        problems.append(
            f"transport: plans take about {size(parts['transport'])} of memory, {where}; "
            "use fewer calibration.samples, or calibration.pooling: sample"
        )
    budget = recipe.memory_bytes or free_memory(device)
    streamed = [name for name in ("weights", "teacher") if parts.get(name, 0) // (1 + cuda) > budget]
    if streamed:
        most = max(parts[name] for name in streamed)
        notes.append(
            f"memory: {size(most)} of weights in float32, {size(budget)} for them here: where bfloat16 does not fit "
            "either they are streamed layer by layer from disk in every pass, which is slower"
        )
    return problems, notes


def _overlapping(output: Path, parties: Sequence[Party]) -> str | None:
    place = output.resolve()
    for party in parties:
        own = [folder.resolve() for folder in (party.located.folder, party.located.packed) if folder is not None]
        folder = next((one for one in own if place == one or one in place.parents or place in one.parents), None)
        if folder is not None:
            return (
                f"output: {output} and the {party.role} model {folder} lie in one another, and models are only read; "
                f"choose another output"
            )
    return None


def _disk(output: Path, there: Path, needs: Estimate, parties: Sequence[Party]) -> list[str]:
    """Room for the run folder and, in the cache, for what has to be downloaded or unpacked; together on one disk."""
    from huggingface_hub import constants

    pending = {(listing.folder, listing.file): listing for party in parties for listing in party.located.downloads}
    arriving = sum(file.size for listing in pending.values() for file in listing.missing)
    cache = _existing(Path(cache_folder()))
    if arriving and (problem := lacking_room(arriving)):
        return [problem]
    unpacked, home = unpacked_bytes(*parties), _existing(Path(constants.HF_HOME))
    own = there.stat().st_dev
    beside = {"the download": arriving if arriving and cache.stat().st_dev == own else 0}
    beside["the unpacked weights"] = unpacked if unpacked and home.stat().st_dev == own else 0
    elsewhere = unpacked - beside["the unpacked weights"]
    if elsewhere > shutil.disk_usage(home).free:
        return [
            f"cache: {size(shutil.disk_usage(home).free)} free at {home}, the source's weights take {size(elsewhere)} "
            f"unpacked; free space, or set HF_HOME to a folder on another disk"
        ]
    free = shutil.disk_usage(there).free
    if free >= needs.disk_bytes + sum(beside.values()):
        return []
    more = "".join(f" and {what}, to the same disk, {size(count)}" for what, count in beside.items() if count)
    return [
        f"output: {size(free)} free at {there}, the run needs about {size(needs.disk_bytes)}{more}; "
        f"free space or choose another output"
    ]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
