"""`tmerge cache`: the engines that one-file executables have unpacked."""

from __future__ import annotations

import shutil
from pathlib import Path

from tmerge_tui import bundle, stopping
from tmerge_tui.commands.output import data, say
from tmerge_tui.files import storage
from tmerge_tui.quantities import size


def cache(clear: bool) -> int:
    """Lists them, or removes those that no process uses; the exit code. Raises StorageError."""
    found = bundle.engines()
    mine = bundle.folder() if bundle.is_split() else None
    for engine in found:
        used = bundle.in_use(engine)
        note = "in use" if used else "of this executable" if engine == mine else "of another version"
        taken = size(_bytes(engine))
        if clear and not used:
            with storage(engine), stopping.held():  # half of it would be taken for the whole
                shutil.rmtree(engine)
        data(f"{engine}  {taken}  {note}{', removed' if clear and not used else ''}")
    if not found:
        say(f"nothing is unpacked in {bundle.cache_folder()}")
    return 1 if clear and any(engine.exists() for engine in found) else 0


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
