"""What `tmerge scout` has found, kept for this user: one JSON file for a pair of models, a device and texts.

The seconds that both models take do not depend on the texts, so that `tmerge plan`, the wizard and a later run find
them by the pair alone. A file that is there is whole.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmerge_tui import bundle
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import finite
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import key

FORMAT = "scout-1"


@dataclass(frozen=True)
class Pace:
    """Seconds that a model takes for 1,000 tokens on this machine: forward alone, and with backward and its step."""

    forward: float
    training: float | None  # None: it was not tuned

    @property
    def flop(self) -> float:
        """Seconds of a forward pass for 2 FLOP of each of 1,000 tokens, over those: to be divided by parameters."""
        return self.forward / 2000

    @property
    def learning_flop(self) -> float:
        """The same of training, 6 FLOP a parameter; as a forward pass where it was not measured."""
        return self.flop if self.training is None else self.training / 6000


def folder() -> Path:
    """TMERGE_CACHE sets another place."""
    return bundle.cache_folder().parent / "scout"


def place(recipe: Recipe, facts: Pair[ModelFacts], device: torch.device) -> str:
    """Names the pair, this machine and the type of the passes: all that the seconds depend on."""
    models = [one.fingerprint for _, one in facts.items()]
    return key(FORMAT, models, platform.node(), torch.get_num_threads(), str(device), recipe.dtype, recipe.memory_bytes)


def known(where: str, content: str) -> dict[str, Any] | None:
    """What was found of this content; None when it was not looked for, or the file cannot be read."""
    return _read(folder() / f"{where}-{content}.json")


def keep(where: str, content: str, found: Mapping[str, Any]) -> None:
    """Raises StorageError."""
    path = folder() / f"{where}-{content}.json"
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(finite(dict(found)), ensure_ascii=False, indent=1).encode())


def pace_of(recipe: Recipe, facts: Pair[ModelFacts], device: torch.device) -> Pair[Pace] | None:
    """What was measured last of this pair here; None when it was not scouted."""
    try:
        files = sorted(folder().glob(f"{place(recipe, facts, device)}-*.json"), key=lambda path: path.stat().st_mtime)
    except OSError:
        return None
    found = next((said for path in reversed(files) if (said := _read(path))), None)
    return None if found is None else paces(found)


def paces(found: Mapping[str, Any]) -> Pair[Pace]:
    """Of what is kept."""
    models = found["models"]
    one = {role: Pace(models[role]["forward"], models[role]["training"]) for role in ("target", "source")}
    return Pair(target=one["target"], source=one["source"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # it is looked for again
    return said if isinstance(said, dict) else None
