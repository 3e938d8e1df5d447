"""Checkpoints of an unfinished training: the one to take up. What is damaged costs steps, never the run."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from tmerge_tui.errors import StorageError
from tmerge_tui.run_folder import open_piece

WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"


def last_checkpoint(folder: Path, warn: Callable[[str], None]) -> str | None:
    """The newest checkpoint that is whole, and whose best one so far is too; those before it in line are removed.

    The trainer's state is written last: a checkpoint without it is what a stopped process was about to write. Any
    other that cannot be taken up is warned of.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        if (path / STATE).exists():
            try:
                best = json.loads((path / STATE).read_text(encoding="utf-8"))["best_model_checkpoint"]
                _require_whole(path)
                if best is not None:
                    _require_whole(folder / Path(best).name)
                return str(path)
            except (OSError, ValueError, StorageError) as error:
                found = error.found if isinstance(error, StorageError) else f"{path / STATE}: {error}"
                warn(
                    f"a checkpoint is damaged and not taken up, what was trained since the one before is lost: {found}"
                )
        shutil.rmtree(path, ignore_errors=True)  # several processes may do so
    return None


def _require_whole(checkpoint: Path) -> None:
    """Raises StorageError when one of its files has gone or is cut off."""
    with open_piece(checkpoint / WEIGHTS):
        pass
    random_state = [path.name for path in checkpoint.glob("rng_state*.pth")]  # one of each process
    for name in ("optimizer.pt", "scheduler.pt", *random_state):
        if not zipfile.is_zipfile(checkpoint / name):  # as torch.save writes them: their index is at the end
            raise StorageError(f"{checkpoint / name} has gone or is cut off", "the state of a training")
