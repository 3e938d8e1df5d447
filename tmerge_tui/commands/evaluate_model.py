"""`tmerge eval MODEL --general`: a model that no run has made, beside another one where that is named."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from tmerge_tui.commands.batch import Options
from tmerge_tui.commands.output import data
from tmerge_tui.errors import UsageError
from tmerge_tui.events import Event, Line
from tmerge_tui.quantities import bits, count, interval, signed
from tmerge_tui.recipe import make_recipe


def is_model(name: str) -> bool:
    """Whether what is to be measured is a model and no run: a folder of one, a GGUF file, or a name of the Hub."""
    if os.path.isdir(name):
        return os.path.isfile(os.path.join(name, "config.json"))
    return os.path.isfile(name) or (name.count("/") == 1 and not os.path.isdir(os.path.dirname(name)))


def measure(name: str, against: str | None, asked: Mapping[str, Any], options: Options) -> int:
    """Prints bits per byte of general text. Raises UsageError for what needs a run, and what measuring raises."""
    from rich.console import Console

    from tmerge_tui.commands.render import renderer

    others = [part for part, value in asked.items() if value and part != "general"]
    if others or not asked["general"]:
        wrong = f"{', '.join(others).replace('_', '-')} of a model" if others else "nothing to ask"
        raise UsageError(wrong, "--general, alone or with --against", "the rest needs the folder of a finished run")
    recipe = make_recipe(
        {
            "source": name, "target": against or name, "calibration": {"path": "none"}, "output": "none",
            "evaluation": {"general": asked["general"]},
        }
    )  # fmt: skip
    screen = renderer(Console(stderr=True, highlight=False), options.quiet)
    seen = 0

    def emit(event: Event) -> None:
        nonlocal seen
        screen.show(Line(seen, time.time(), event))
        screen.tick()
        seen += 1

    try:
        from tmerge_tui.engine.preflight.alone import alone

        found = alone(recipe, emit)
    finally:
        screen.close()
    if options.json:
        data(json.dumps(found, ensure_ascii=False))
        return 0
    for row in found["rows"]:
        data(f"{row['model']}: {bits(row['bits_per_byte'])} bits per byte, {count(found['texts'])} of {found['name']}")
    if between := found["difference"]:
        ends = interval(between["low"], between["high"])
        data(f"difference {signed(between['difference'])}, 95 % interval {ends}")
    return 0
