"""Memory, cores and disks, as far as this process may use them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import psutil

from tmerge_tui import bundle, machine
from tmerge_tui.commands.doctor.finding import Finding, Level, checked
from tmerge_tui.edition import edition
from tmerge_tui.quantities import size

LOW_MEMORY = 4e9
LOW_DISK = 10e9  # for models
LOW_TEMPORARY = 1e9
LOW_OWN = 50e6  # for the wizard's few small files


def findings() -> Iterator[Finding]:
    yield memory()
    yield swap()
    yield cores()
    yield from disks()


def memory() -> Finding:
    has = machine.memory()
    most = f"{size(has.limit)} that the {has.limited_by} allows" if has.limit is not None else size(has.total)
    found = f"{size(has.available)} free of {most}" + (f" (the machine has {size(has.total)})" if has.limit else "")
    low = has.available < LOW_MEMORY
    advice = "enough for small models only; set memory: in the recipe to stream larger ones" if low else ""
    return checked("memory", found, advice, **vars(has))


def swap() -> Finding:
    has = psutil.swap_memory()
    found = f"{size(has.free)} free of {size(has.total)}" if has.total else "none"
    return Finding("swap", found, facts={"total": has.total, "free": has.free})


def cores() -> Finding:
    seen, granted = machine.cores()
    facts = {"seen": seen, "granted": granted, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    if granted is None:
        return Finding("cores", str(seen), facts=facts)
    threads = max(1, round(granted))
    spread = threads < seen and not os.environ.get("OMP_NUM_THREADS")
    advice = f"set OMP_NUM_THREADS={threads}: a thread for each core that is seen is slower" if spread else ""
    found = f"{granted:g} at a time of the {seen} that are seen (the container's quota)"
    return checked("cores", found, advice, **facts)


def disks() -> Iterator[Finding]:
    from huggingface_hub import constants

    yield disk("disk here", Path.cwd(), LOW_DISK, "a merged model takes as much as the target: set output: elsewhere")
    yield disk("hub cache", Path(constants.HF_HUB_CACHE), LOW_DISK, "set HF_HOME to a folder on another disk")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Finding("temporary files", str(error), "set TMPDIR to a folder that can be written", Level.MISSING)
    else:
        yield disk("temporary files", temporary, LOW_TEMPORARY, "set TMPDIR to a folder on another disk")
    own = Path(platformdirs.user_state_dir("tmerge", appauthor=False))
    yield disk("own files", own, LOW_OWN, "set XDG_STATE_HOME to a folder on another disk")
    if getattr(sys, "frozen", False):
        yield engine()


def engine() -> Finding:
    """Where the engine of a one-file executable is, or will be, unpacked: programs have to start from there."""
    part, cache = edition().engine, bundle.cache_folder()
    ready = part is None or bundle.is_ready()  # the engine itself runs from there
    found = disk("engine", cache, 0 if part is None or ready else part.unpacked + bundle.SPARE, ELSEWHERE)
    if found.advice:
        return found
    if bundle.is_noexec(_nearest(cache)):
        return checked("engine", f"{cache}: no program can start there (noexec)", ELSEWHERE, **found.facts)
    state = "unpacked" if ready else f"unpacked at the first run ({size(part.unpacked if part else 0)})"
    return Finding("engine", f"{found.found}, {state}", facts={**found.facts, "ready": ready})


ELSEWHERE = "set TMERGE_CACHE to a folder on another disk"


def disk(what: str, folder: Path, least: float, advice: str) -> Finding:
    """A folder that need not exist yet: free bytes and whether it can be written; `advice` when there is too little."""
    there = _nearest(folder)
    free = shutil.disk_usage(there).free
    writable = _can_write(there)
    found = f"{folder}: {size(free)} free" + ("" if writable else ", cannot be written")
    facts = {"folder": str(folder), "free": free, "writable": writable}
    return checked(what, found, advice if free < least or not writable else "", **facts)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _can_write(folder: Path) -> bool:
    """By trying: permissions do not tell of read-only and remote disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
