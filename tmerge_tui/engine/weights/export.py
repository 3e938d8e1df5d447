"""The result as a plain checkpoint in the target's own format (eq. 18), with every tensor accounted for."""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.weights.update import Update
from tmerge_tui.errors import ModelError, StorageError
from tmerge_tui.events import Artifact, Emit, Warned
from tmerge_tui.models.checkpoint import Checkpoint, copy_bytes, patch_checkpoint
from tmerge_tui.run_folder import RunDir, key

WRITTEN_LATER = ("README.md", "tmerge_recipe.yaml")  # the model card and recipe are put beside the weights afterwards


@dataclass(frozen=True)
class Folded:
    """What lies in the output folder."""

    alpha: float
    folder: str
    fused: tuple[str, ...]  # tensors that changed
    copied: int  # tensors that are the target's, byte for byte
    files: tuple[dict[str, Any], ...]  # {"path", "bytes", "sha256"} of every file


def export(
    update: Update,
    alpha: float,  # as the report names the result
    out: Path,
    run: RunDir,
    emit: Emit,
    progress: Progress | None = None,  # in bytes, see copy_bytes; its own when None
) -> Folded:
    """Writes the target with `update` to the folder `out`; the same found finished there is not redone.

    `out` appears whole or not at all. Statistics were fp32; each weight is cast once, here, to its own dtype.
    Raises StorageError when there is no room, ModelError when a changed tensor is not in the target's file or the
    written folder is not the target's but for the changed tensors, NumericsError when a weight is not finite.
    """
    target, names = update.target, update.names
    missing = sorted(set(names) - set(target.names))
    if missing:
        raise ModelError(
            f"{target.folder} lacks {len(missing)} tensors that were fused, first {missing[0]!r}",
            "the target model the plans were made for",
            "run again from the start with this target",
        )
    if target.pickled:
        emit(
            Warned("fold", "the target's weights are .bin files; the result has the same tensors in safetensors files")
        )
    marker = run.piece("folded", key("fold-1", target.fingerprint(), *update.key[1:], out.name), ".json")
    work = copy_bytes(target, names)
    with nullcontext(progress) if progress else Progress(emit, "fold", "Writing the model", work, "bytes") as shown:
        found = _finished(marker, out)
        if found:
            shown.skip(work)
            return found
        _check_room(target, out)
        patch_checkpoint(target, out, {name: partial(_changed, update, name) for name in names}, shown.advance)
        _account(target, Checkpoint(out))
    files = tuple(_describe(path, out) for path in sorted(out.rglob("*")) if path.is_file())
    folded = Folded(alpha, str(out), names, len(target.names) - len(names), files)
    run.save_json(marker, asdict(folded))
    emit(Artifact("model", str(out), sum(file["bytes"] for file in files)))
    return folded


def _changed(update: Update, name: str, stored: Tensor) -> Tensor:
    return update.change(name, stored).applied(stored)


def _check_room(target: Checkpoint, out: Path) -> None:
    needed = copy_bytes(target, ())
    place = out.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise StorageError(
            f"{free:,} bytes free at {place}",
            f"{needed:,} bytes for the merged model",
            "free space and run the same command: finished pieces are kept",
        )


def _account(target: Checkpoint, written: Checkpoint) -> None:
    """The written folder has the target's tensors under the same names, dtypes and shapes, and its other files."""

    def table(checkpoint: Checkpoint) -> dict[str, tuple[Any, ...]]:
        infos = {name: checkpoint.info(name) for name in checkpoint.names}
        if target.pickled:  # written as safetensors: other files, other places
            return {name: (i.dtype, i.shape) for name, i in infos.items()}
        return {name: (i.file.name, i.dtype, i.shape, i.start, i.end) for name, i in infos.items()}

    ours, theirs = table(written), table(target)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    for file in target.other_files:
        relative = file.relative_to(target.folder)
        if not filecmp.cmp(file, written.folder / relative, shallow=False):
            different.append(str(relative))
    if different:
        raise ModelError(
            f"{written.folder} differs from the target where nothing was fused: {', '.join(different[:4])}",
            "the target's own tensors and files",
            "the target may have changed during the run; run again",
        )


def _finished(marker: Path, out: Path) -> Folded | None:
    """What an earlier run has folded, if every file is still as it left it."""
    try:
        kept = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for file in kept["files"]:
        path = out / file["path"]
        if file["path"] not in WRITTEN_LATER and (not path.is_file() or _describe(path, out) != file):
            return None
    return Folded(kept["alpha"], str(out), tuple(kept["fused"]), kept["copied"], tuple(kept["files"]))


def _describe(path: Path, folder: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
