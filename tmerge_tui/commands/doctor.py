"""`tmerge doctor`: what this machine offers, and what to do about what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tmerge_tui import __version__
from tmerge_tui.commands.output import data
from tmerge_tui.engine.wording import size

Finding = tuple[str, str, str]  # what, found, what to do ("" when all is well)

LOW_MEMORY = 4e9
LOW_DISK = 10e9
PACKAGES = ("torch", "transformers", "textual", "POT", "huggingface-hub", "pyarrow")


def doctor() -> int:
    """Prints the findings; 1 when something needed is missing, else 0."""
    broken = False
    for what, found, advice in findings():
        data(f"{'!' if advice else ' '} {what:<15} {found}")
        if advice:
            data(f"  {'':<15} {advice}")
        broken |= found == "missing"
    return int(broken)


def findings() -> Iterator[Finding]:
    frozen = " (single file)" if getattr(sys, "frozen", False) else ""
    yield "tmerge", __version__ + frozen, ""
    version = platform.python_version()
    yield "python", f"{version} on {platform.platform()}", "" if sys.version_info >= (3, 11) else "use 3.11 or newer"
    for name in PACKAGES:
        yield package(name)
    yield accelerator()
    yield from machine()
    yield from hub()
    yield terminal()


def package(name: str) -> Finding:
    try:
        return name, importlib.metadata.version(name), ""
    except importlib.metadata.PackageNotFoundError:
        return name, "missing", f"pip install {name}"


def accelerator() -> Finding:
    try:
        import torch
    except ImportError as error:
        return "gpu", "missing", f"torch cannot be imported: {error}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        return "gpu", f"{', '.join(names)}; {size(free)} of {size(total)} free", ""
    if torch.backends.mps.is_available():
        return "gpu", "Apple GPU (mps)", ""
    if torch.version.cuda:
        return "gpu", "none that this torch can use", "check the driver with nvidia-smi; runs use the CPU meanwhile"
    if shutil.which("nvidia-smi"):
        return "gpu", "not used: this torch is a CPU build", "install the CUDA build of torch to use it"
    return "gpu", "none; runs use the CPU", ""


def machine() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    low = memory.available < LOW_MEMORY
    advice = "enough for small models only; set memory: in the recipe to stream larger ones" if low else ""
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    yield "memory", f"{size(memory.available)} of {size(memory.total)} free, {cores} cores", advice
    free = shutil.disk_usage(".").free
    advice = "a merged model takes as much as the target; choose output: on another disk" if free < LOW_DISK else ""
    yield "disk", f"{size(free)} free here", advice


def hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    where = next(folder for folder in (cache, *cache.parents) if folder.exists())
    writable = os.access(where, os.W_OK)
    yield (
        "cache",
        f"{cache}, {size(shutil.disk_usage(where).free)} free",
        "" if writable else "not writable: set HF_HOME",
    )
    if constants.HF_HUB_OFFLINE:
        yield "hub", "offline (HF_HUB_OFFLINE is set)", ""
    has_token = bool(get_token())
    yield "token", "present" if has_token else "none: gated models cannot be read; `hf auth login` stores one", ""


def terminal() -> Finding:
    from rich.console import Console

    term = os.environ.get("TERM", "")
    if not sys.stderr.isatty() or term in ("", "dumb"):
        return (
            "terminal",
            f"none for the wizard (TERM={term or 'unset'})",
            "use tmerge --batch, or an interactive terminal",
        )
    colours = Console(stderr=True).color_system or "none"
    columns, rows = shutil.get_terminal_size()
    advice = "the wizard wants 80 x 24 at least" if columns < 80 or rows < 24 else ""
    return "terminal", f"{columns} x {rows}, colours: {colours}", advice
