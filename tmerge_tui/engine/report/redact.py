"""What may leave this machine: no local path beyond its last name, no token, no secret, no held-out text.

Model card, recipe and the report that `tmerge push` uploads all go through here; the run folder's own report keeps its
paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from tmerge_tui.engine.report.render import write_report
from tmerge_tui.errors import RunFolderError
from tmerge_tui.run_folder import RunDir

LOCAL = re.compile(r"^(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:)")
_INSIDE = re.compile(r"(?<![\w:/.~-])~?(?:/[^\s/:,;'\"()]+)+/([^\s/:,;'\"()]+)")  # /a/b/c amid a sentence; not a URL
_TOKEN = re.compile(r"\b(hf|api_org|ghp|sk)_?-?[A-Za-z0-9]{20,}\b")
_SECRET_KEY = re.compile(r"(^|_)(token|secret|password|api_key)$", re.IGNORECASE)
_CELLS = "data"  # of a heat map: base64, which looks like a path or a token by chance
_OWN = "excerpts"  # of the user's own text: its place stays, empty
_TEXT = ("prompts", "prompt", "text")  # what a model reads or writes is not a path, even when it starts with a slash


def public(value: Any, key: str = "") -> Any:
    """The same nested value fit to be published."""
    if isinstance(value, Mapping):
        return {k: public(v, str(k)) for k, v in value.items() if not _SECRET_KEY.search(str(k))}
    if isinstance(value, (list, tuple)):
        if key == _OWN:
            return []
        return [public(v, key) for v in value]
    if not isinstance(value, str) or key == _CELLS:
        return value
    if key not in _TEXT:
        # PureWindowsPath knows both kinds of slash
        value = PureWindowsPath(value).name if LOCAL.match(value) and "\n" not in value and " " not in value else value
        value = _INSIDE.sub(r"\1", value)
    return _TOKEN.sub("(removed)", value)


def write_public_report(run: RunDir, folder: Path) -> Path:
    """The report of a finished run without paths, in `folder`; returns it. Raises RunFolderError, StorageError."""
    try:
        results = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{run.path} has no readable report.json", "a finished run", "run its recipe again"
        ) from error
    write_report(public(results), RunDir(folder))
    return folder
