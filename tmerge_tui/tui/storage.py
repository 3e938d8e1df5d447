"""What the wizard remembers between starts: the half-filled draft and the chosen theme. Runs are in worker.run_index.

Small JSON files in the user's state folder. A file that cannot be read counts as empty; one that cannot be
written is reported once by the caller and never stops the wizard.
"""

from __future__ import annotations

import json
from typing import Any

from tmerge_tui.files import write_atomic
from tmerge_tui.worker.run_index import state_folder as folder

__all__ = ["folder", "read", "write"]


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
