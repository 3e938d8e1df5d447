"""What the wizard remembers between starts: the half-filled draft, recent runs, the chosen theme.

Three small JSON files in the user's state folder. A file that cannot be read counts as empty; one that cannot be
written is reported once by the caller and never stops the wizard.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import platformdirs

from tmerge_tui.files import write_atomic

RECENT_LIMIT = 30


def folder() -> Path:
    return Path(platformdirs.user_state_dir("tmerge", appauthor=False))


def read(name: str) -> dict[str, Any]:
    """The content of one file; empty when it is missing or damaged."""
    try:
        data = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write(name: str, data: dict[str, Any]) -> None:
    """Raises OSError."""
    path = folder() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(data, ensure_ascii=False, indent=1).encode())


def recent_runs() -> list[dict[str, Any]]:
    """Newest first: {"path", "started", "source", "target"}; folders that are gone are left out."""
    runs = read("runs").get("runs", [])
    known = [run for run in runs if isinstance(run, dict) and isinstance(run.get("path"), str)]
    return [run for run in known if Path(run["path"]).is_dir()]


def remember_run(path: Path, source: str, target: str) -> None:
    """Puts a run on top of the list. Raises OSError."""
    others = [run for run in recent_runs() if run["path"] != str(path)]
    entry = {"path": str(path), "started": time.time(), "source": source, "target": target}
    write("runs", {"runs": [entry, *others][:RECENT_LIMIT]})


def forget_run(path: str) -> None:
    """Takes a run off the list; its folder is not touched. Raises OSError."""
    write("runs", {"runs": [run for run in recent_runs() if run["path"] != path]})
