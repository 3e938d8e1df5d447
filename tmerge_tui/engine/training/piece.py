"""What a training leaves: the trained tensors in fp32 under their names in the target's file, as an update of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from tmerge_tui.engine.training.trainer import Trained
from tmerge_tui.engine.weights.update import Change
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.run_folder import open_piece


@dataclass(frozen=True)
class TrainedPiece:
    """One finished training on disk. Reading raises StorageError when the piece has gone or is damaged."""

    arm: str
    seed: int
    path: Path
    content: str  # its key in the run folder
    target: Checkpoint
    norm: str  # of the fusion it started from

    @cached_property
    def figures(self) -> Trained:
        with open_piece(self.path) as file:
            return Trained(**json.loads(file.metadata()["meta"]))

    @property
    def key(self) -> tuple[Any, ...]:
        return False, self.content, None, self.norm

    @cached_property
    def names(self) -> tuple[str, ...]:
        with open_piece(self.path) as file:
            return tuple(file.keys())

    def change(self, name: str, stored: Tensor) -> Change:
        with open_piece(self.path) as file:
            return Change(file.get_tensor(name).to(stored.device))
