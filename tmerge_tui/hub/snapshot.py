"""Files of a commit brought into, or shown in, the standard cache by the Hub's own client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tmerge_tui.hub.errors import explained

WORKERS = 4  # files at a time


def bring(repo: str, commit: str, paths: Sequence[str], name: str) -> Path:
    """The folder of the commit with these files in it; blobs that are there are only shown under their names.

    `name` is what an error calls the model. Raises ModelError, StorageError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with explained(name):
            return Path(snapshot_download(repo, revision=commit, allow_patterns=list(paths), max_workers=WORKERS))
    finally:
        if shown:
            enable_progress_bars()
