"""`tmerge runs` and `tmerge compare`: what was made on this machine, and two of it side by side."""

from __future__ import annotations

import json
from pathlib import Path

from tmerge_tui.commands.output import data, say
from tmerge_tui.quantities import NONE, duration, finite
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.compare import compare as side_by_side
from tmerge_tui.worker.summary import summaries


def runs(words: tuple[str, ...], as_json: bool) -> int:
    """Every run on the list of this machine whose line holds all `words`, newest first."""
    found = [run for run in summaries() if all(word.lower() in str(run).lower() for word in words)]
    if as_json:
        data(json.dumps([finite(run.as_json()) for run in found], ensure_ascii=False, indent=1))
        return 0
    rows = [
        (run.state, run.outcome or NONE, duration(run.seconds), run.merge, str(run.path), run.note) for run in found
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for *cells, path, note in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        data(f"{line}  {path}" + (f"  (a later attempt {note})" if note else ""))
    if not found:
        say("no run on this machine" + (f" has {' '.join(words)}" if words else " yet: tmerge demo makes one"))
    return 0


def compare(first: str, second: str) -> int:
    """Raises RunFolderError when one of them is no run."""
    paths = [Path(RunDir.open(path).path) for path in (first, second)]
    for title, rows in side_by_side(*paths):
        data(title)
        table = rows or [("none", "", "")]
        widths = [max(len(row[column]) for row in table) for column in (0, 1)]
        for name, left, right in table:
            data(f"  {name:<{widths[0]}}  {left:<{widths[1]}}  {right}".rstrip())
    return 0
