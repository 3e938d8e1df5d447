"""A tiny pair of strangers with text and a recipe: the smallest thing the whole pipeline runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import make_model, make_text
from tmerge_tui.recipe import Recipe, make_recipe


def make_pair(folder: Path, target: str = "qwen2", source: str = "llama") -> dict[str, Any]:
    """Makes models and text in `folder`; a recipe as a mapping, its output `folder`/run."""
    make_model(folder / "source", source, hidden=48, layers=3, heads=4, kv_heads=2, intermediate=64, vocab=400, seed=1)
    make_model(folder / "target", target, hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, seed=2)
    return {
        "source": str(folder / "source"),
        "target": str(folder / "target"),
        "calibration": {
            "path": str(make_text(folder / "text.txt", 80)),
            "samples": 70,
            "holdout": 10,
            "max_length": 32,
            "batch_size": 8,
        },
        "transport": {"projections": ["q", "k", "v", "o", "gate", "up", "down"]},
        "fusion": {"alpha": 0.3, "k": 8, "r": 8, "coupling": "barycentric"},
        "evaluation": {"resamples": 100, "prompts": ["Two rivers"]},
        "output": str(folder / "run"),
        "device": "cpu",
    }


def recipe_of(mapping: dict[str, Any], **changes: Any) -> Recipe:
    """The recipe with some sections changed: `fusion={"alpha": 0}` updates that section, scalars replace."""
    merged = dict(mapping)
    for name, value in changes.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return make_recipe(merged)
