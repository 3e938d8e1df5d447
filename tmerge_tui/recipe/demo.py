"""The bundled example as a recipe: its models and text lie beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmerge_tui import shipped
from tmerge_tui.recipe.yamlfile import read_mapping


def demo_mapping(folder: Path) -> dict[str, Any]:
    """What the demo's recipe says, with models and text in `folder`, where they stay for the worker.

    Raises RecipeError and OSError.
    """
    data = read_mapping(shipped.folder() / "demo" / "recipe.yaml")
    for section, names in ((data, ("source", "target")), (data["calibration"], ("path", "holdout_path"))):
        for name in names:
            if section.get(name):
                section[name] = str(folder / section[name])
    return data
