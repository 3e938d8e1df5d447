"""Where the files lie that are shipped beside the code: demo models and text, presets, templates, pictures.

In a clone and an editable install that is the top-level folder `assets`; a wheel and the frozen file carry it inside
the package.
"""

from __future__ import annotations

from pathlib import Path

INSIDE = Path(__file__).parent / "assets"
BESIDE = Path(__file__).parents[1] / "assets"


def folder() -> Path:
    return INSIDE if INSIDE.is_dir() else BESIDE
