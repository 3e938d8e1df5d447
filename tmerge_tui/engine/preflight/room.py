"""Room for a run and where it writes: disk, memory, and an output that is no part of what is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from tmerge_tui import machine
from tmerge_tui.engine.prepared import Estimate, Party
from tmerge_tui.hub.download import lacking_room
from tmerge_tui.hub.errors import cache_folder
from tmerge_tui.quantities import size
from tmerge_tui.recipe import Recipe


def output_problems(recipe: Recipe, needs: Estimate, parties: tuple[Party, Party]) -> list[str]:
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
    if not os.access(there, os.W_OK):
        return [f"output: {there} is read-only, expected a folder to write in; choose another output"]
    return _disk(output, there, needs, parties)


def memory_warning(needs: Estimate, device: torch.device) -> list[str]:
    """Said when a run on the CPU is expected to need more than the machine has."""
    total = machine.memory().total
    if device.type != "cpu" or needs.memory_bytes <= total:
        return []
    return [
        f"the run may need {size(needs.memory_bytes)} of memory, this machine has {size(total)}; set memory: in the "
        f"recipe to less, so that layers are streamed from disk"
    ]


def _overlapping(output: Path, parties: tuple[Party, Party]) -> str | None:
    place = output.resolve()
    for party in parties:
        folder = party.located.folder.resolve()
        if place == folder or folder in place.parents or place in folder.parents:
            return (
                f"output: {output} and the {party.role} model {folder} lie in one another, and models are only read; "
                f"choose another output"
            )
    return None


def _disk(output: Path, there: Path, needs: Estimate, parties: tuple[Party, Party]) -> list[str]:
    """Room for the run folder and, in the cache, for what has to be downloaded; both together on one disk."""
    pending = {listing.folder: listing for party in parties for listing in party.located.downloads}
    arriving = sum(file.size for listing in pending.values() for file in listing.missing)
    cache = _existing(Path(cache_folder()))
    if arriving and (problem := lacking_room(arriving)):
        return [problem]
    together = arriving if arriving and cache.stat().st_dev == there.stat().st_dev else 0
    free = shutil.disk_usage(there).free
    if free >= needs.disk_bytes + together:
        return []
    download = f" and the download, to the same disk, {size(together)}" if together else ""
    return [
        f"output: {size(free)} free at {there}, the run needs about {size(needs.disk_bytes)}{download}; "
        f"free space or choose another output"
    ]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
