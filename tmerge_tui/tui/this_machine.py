"""What this machine is, for the home screen: no torch, nothing that waits for a network."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path

from tmerge_tui import __version__
from tmerge_tui.edition import edition
from tmerge_tui.machine import cores, memory, nvidia
from tmerge_tui.quantities import size


def facts(folder: Path) -> list[tuple[str, str]]:
    """(name, value) rows. Takes up to a second where a GPU driver has to be asked: run in a thread."""
    from tmerge_tui.tui import catalog

    has = memory()
    seen, granted = cores()
    disk = shutil.disk_usage(folder)
    return [
        ("GPU", _gpu()),
        ("CPU", f"{seen if granted is None else f'{granted:g} of {seen}'} cores, {platform.machine()}"),
        ("Memory", f"{size(has.available)} free of {size(has.total if has.limit is None else has.limit)}"),
        ("Disk here", f"{size(disk.free)} free of {size(disk.total)}"),
        ("Hub", catalog.login()),
        ("Versions", f"tmerge {__version__}, torch {_version('torch')}, transformers {_version('transformers')}"),
    ]


def _gpu() -> str:
    """Names and memory as the driver's own tool says them."""
    seen = nvidia()
    if seen is None:
        return "Apple (mps)" if platform.system() == "Darwin" and platform.machine() == "arm64" else "none found"
    if seen.problem:
        return "driver does not answer"
    if not seen.cards:
        return "none found"
    count, first = len(seen.cards), seen.cards[0]
    return f"{f'{count} x ' if count > 1 else ''}{first.name}, {size(first.total)}"


def _version(package: str) -> str:
    """As built in, or as installed."""
    try:
        return edition().packages.get(package) or importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
