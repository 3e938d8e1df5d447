"""Two runs side by side: what they achieved, and the settings in which they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tmerge_tui.errors import RecipeError
from tmerge_tui.quantities import NONE, bits, duration, interval, known, signed, size
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.follow import REPORT
from tmerge_tui.worker.summary import summary

Row = tuple[str, str, str]  # what, in the first run, in the second


def compare(first: Path, second: Path) -> list[tuple[str, list[Row]]]:
    """(title, rows) of "Result" and "Settings that differ"; the latter is empty where the recipes agree."""
    results = [_result(path) for path in (first, second)]
    names = dict.fromkeys(name for result in results for name in result)
    left, right = results
    shown = [(name, left.get(name, NONE), right.get(name, NONE)) for name in names]
    ours, theirs = _settings(first), _settings(second)
    differing = [
        (name, _text(ours.get(name)), _text(theirs.get(name)))
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
    return [("Result", shown), ("Settings that differ", differing)]


def _result(path: Path) -> dict[str, str]:
    run = summary(path, 0.0)
    found = {"merge": run.merge, "state": run.state, "verdict": run.verdict or NONE, "time": duration(run.seconds)}
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return found
    for row in report.get("scores") or ():
        at = "" if row.get("alpha") is None else f" at alpha {row['alpha']:g}"
        said = bits(row.get("bits_per_byte"))
        if known(row.get("difference")) is not None:
            said += f"  {signed(row['difference'])} ({interval(row.get('low'), row.get('high'))})"
        found[f"{row['model']}{at}"] = said
    for row in report.get("benchmarks") or ():
        at = "" if row.get("alpha") is None else f" at alpha {row['alpha']:g}"
        found[f"{row['task']}, {row['model']}{at}"] = bits(row.get("value"))
    found["peak memory"] = size((report.get("memory") or {}).get("peak_rss"))
    return found


def _settings(path: Path) -> dict[str, Any]:
    """Dotted name -> value of the run's recipe, without what the run itself wrote down."""
    from tmerge_tui.recipe import load_recipe

    try:
        data = load_recipe(RunDir(path).recipe).model_dump(mode="json")
    except RecipeError:
        return {}
    data.pop("resolved", None)
    data.pop("output", None)
    return dict(_leaves(data))


def _leaves(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in data.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def _text(value: Any) -> str:
    if value is None:
        return NONE
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
