"""What this machine is, for the home screen: no torch, nothing that waits for a network."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil

from tmerge_tui import __version__
from tmerge_tui.tui import human


def facts(folder: Path) -> list[tuple[str, str]]:
    """(name, value) rows. Takes up to a second where a GPU driver has to be asked: run in a thread."""
    from tmerge_tui.tui import catalog

    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(folder)
    return [
        ("GPU", _gpu()),
        ("CPU", f"{os.cpu_count()} cores, {platform.machine()}"),
        ("Memory", f"{human.size(memory.available)} free of {human.size(memory.total)}"),
        ("Disk here", f"{human.size(disk.free)} free of {human.size(disk.total)}"),
        ("Hub", catalog.login()),
        ("Versions", f"tmerge {__version__}, torch {_version('torch')}, transformers {_version('transformers')}"),
    ]


def _gpu() -> str:
    """Names and memory as the driver's own tool says them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "Apple (mps)" if platform.system() == "Darwin" and platform.machine() == "arm64" else "none found"
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=3, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.SubprocessError):
        return "driver does not answer"
    lines = [line.split(",") for line in said.stdout.splitlines() if "," in line]
    if not lines:
        return "none found"
    name, megabytes = lines[0][0].strip(), lines[0][1].strip()
    total = human.size(float(megabytes) * 2**20) if megabytes.isdigit() else human.DASH
    return f"{f'{len(lines)} x ' if len(lines) > 1 else ''}{name}, {total}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
