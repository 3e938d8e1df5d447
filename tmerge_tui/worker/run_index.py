"""The runs that were made on this machine, by the wizard or the command line: one JSON line for each start.

The file lies in the user's state folder and is only appended to, so that two starts at once lose nothing. A line is
{"path", "started"}, or {"path", "forgotten": true} for one that was taken off the list.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tmerge_tui.files import storage

NAME = "runs.jsonl"


@dataclass(frozen=True)
class Entry:
    """A run folder and when a worker was last started in it, in seconds since the epoch."""

    path: Path
    started: float


def state_folder() -> Path:
    """Where tmerge keeps what it remembers for this user."""
    return Path(platformdirs.user_state_dir("tmerge", appauthor=False))


def remember(path: Path) -> None:
    """Puts a run on top of the list. Raises StorageError."""
    _append({"path": str(path.absolute()), "started": time.time()})


def forget(path: Path) -> None:
    """Takes a run off the list; its folder is not touched. Raises StorageError."""
    _append({"path": str(path.absolute()), "forgotten": True})


def entries() -> list[Entry]:
    """Newest first; folders that are gone are left out, and so is a line that cannot be read."""
    try:
        lines = (state_folder() / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: dict[str, Entry] = {}
    for line in lines:
        try:
            said = json.loads(line)
            path = str(said["path"])
            found.pop(path, None)
            if not said.get("forgotten"):
                found[path] = Entry(Path(path), float(said["started"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # torn by a full disk, or of a newer tmerge
    newest = sorted(found.values(), key=lambda entry: -entry.started)
    return [entry for entry in newest if entry.path.is_dir()]


def _append(said: dict[str, object]) -> None:
    file = state_folder() / NAME
    with storage(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(said, ensure_ascii=False) + "\n")
