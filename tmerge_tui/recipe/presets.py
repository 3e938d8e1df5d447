"""The paper's tasks as recipes to start from: `preset: malay` in a recipe, or preset:malay in place of its file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui import shipped
from tmerge_tui.errors import RecipeError
from tmerge_tui.recipe.yamlfile import read_mapping

FOLDER = shipped.folder() / "presets"
PREFIX = "preset:"
EITHER = ("path", "repo_id")  # of calibration: giving one drops the preset's other


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_preset(name: str) -> dict[str, Any]:
    """The mapping of a preset. Raises RecipeError with a did-you-mean."""
    if name not in preset_names():
        close = difflib.get_close_matches(str(name).lower(), preset_names(), n=1)
        known = f"did you mean {close[0]}?" if close else f"one of {', '.join(preset_names())}"
        raise RecipeError([f"preset: no preset {name!r}; {known}"])
    return read_mapping(FOLDER / f"{name}.yaml")


@dataclass(frozen=True)
class Card:
    """A preset in four lines, for who chooses one."""

    name: str
    title: str  # `big into small`, the last parts of both names
    source: str
    target: str
    data: str
    sets: str


def preset_cards() -> tuple[Card, ...]:
    return tuple(_card(name, read_preset(name)) for name in preset_names())


def _card(name: str, preset: Mapping[str, Any]) -> Card:
    text, source, target = preset["calibration"], str(preset["source"]), str(preset["target"])
    asked = preset.get("evaluation", {}).get("tasks") or ()
    sets = [
        f"alpha {', '.join(f'{alpha:g}' for alpha in preset['fusion']['alpha'])}",
        f"k {preset['fusion']['k']}",
        f"epsilon {preset['transport']['epsilon']:g}",
        *(["training afterwards"] if preset.get("adaptation") else []),
        *([f"benchmarks {', '.join(asked)}"] if asked else []),
    ]
    part = f" ({text['split']})" if text.get("split") else ""
    title = " into ".join(model.rpartition("/")[2] for model in (source, target))
    return Card(name, title, source, target, f"{text['repo_id']}{part}", "; ".join(sets))


def read_recipe_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a recipe file, or that of `preset:NAME`. Raises RecipeError."""
    name = str(path)
    return {"preset": name.removeprefix(PREFIX)} if name.startswith(PREFIX) else read_mapping(path)


def with_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` on top of the preset that it names: its values replace the preset's, sections field by field.

    Raises RecipeError for an unknown preset.
    """
    given = dict(data)
    name = given.pop("preset", None)
    if name is None:
        return given
    merged = read_preset(name)
    for key, value in given.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping):
            if key == "calibration" and any(value.get(field) for field in EITHER):
                dropped = (*EITHER, "config_name", "split", "column", "revision")  # of another origin
                before = {field: kept for field, kept in before.items() if field not in dropped}
            merged[key] = {**before, **value}
        elif isinstance(before, str) and isinstance(value, Mapping):  # source: org/name, the short form
            merged[key] = {"model": before, **value}
        else:
            merged[key] = value
    return merged
