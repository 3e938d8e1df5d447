"""The result as a plain checkpoint in the target's own format (eq. 18), with every tensor accounted for."""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tmerge_tui.engine.methods.transport_merge.fusion import Fusion, apply
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import ModelError, StorageError
from tmerge_tui.events import Artifact, Emit, Warned
from tmerge_tui.models.checkpoint import Checkpoint, copy_bytes, patch_checkpoint
from tmerge_tui.models.layout import Projection
from tmerge_tui.models.parameters import read_weight
from tmerge_tui.run_folder import RunDir, key

T = TypeVar("T")

WRITTEN_LATER = ("README.md", "tmerge_recipe.yaml")  # the model card and recipe are put beside the weights afterwards


@dataclass(frozen=True)
class Folded:
    """What lies in the output folder."""

    alpha: float
    folder: str
    fused: tuple[str, ...]  # tensors that fusion changed
    copied: int  # tensors that are the target's, byte for byte
    files: tuple[dict[str, Any], ...]  # {"path", "bytes", "sha256"} of every file


def fold_bytes(target: Checkpoint, fusion: Fusion) -> int:
    """Bytes that one fold copies and overwrites: what it adds to its progress."""
    return copy_bytes(target, fused_names(fusion))


def fold(
    target: Checkpoint,
    fusion: Fusion,
    alpha: float,
    norm: str,
    out: Path,
    run: RunDir,
    emit: Emit,
    progress: Progress | None = None,  # in bytes, see fold_bytes; its own when None
) -> Folded:
    """Writes target + fusion at `alpha` to the folder `out`; the same fold found finished there is not redone.

    `out` appears whole or not at all. Statistics were fp32; each weight is cast once, here, to its own dtype.
    Raises StorageError when there is no room, ModelError when a fused tensor is not in the target's file or the written
    folder is not the target's but for the fused tensors, NumericsError when a weight is not finite.
    """
    patches = _patches(target, fusion, alpha, norm)
    named = key("fold-1", target.fingerprint(), fusion.key, alpha, norm, out.name)
    return write_folded(target, patches, named, alpha, out, run, emit, progress)


def write_folded(
    target: Checkpoint,
    patches: Mapping[str, Callable[[Tensor], Tensor]],
    named: str,  # names the content of what is written, and `out`
    alpha: float,
    out: Path,
    run: RunDir,
    emit: Emit,
    progress: Progress | None = None,
) -> Folded:
    """The target with `patches`, written, accounted for and described; see `fold`."""
    if target.pickled:
        emit(
            Warned("fold", "the target's weights are .bin files; the result has the same tensors in safetensors files")
        )
    marker = run.piece("folded", named, ".json")
    work = copy_bytes(target, patches)
    with nullcontext(progress) if progress else Progress(emit, "fold", "Writing the model", work, "bytes") as shown:
        found = _finished(marker, out)
        if found:
            shown.skip(work)
            return found
        _check_room(target, out)
        patch_checkpoint(target, out, patches, shown.advance)
        _account(target, Checkpoint(out))
    files = tuple(_describe(path, out) for path in sorted(out.rglob("*")) if path.is_file())
    folded = Folded(alpha, str(out), tuple(patches), len(target.names) - len(patches), files)
    run.save_json(marker, asdict(folded))
    emit(Artifact("model", str(out), sum(file["bytes"] for file in files)))
    return folded


def fused_names(fusion: Fusion) -> list[str]:
    """Names of the target's tensors that fusion changes; one that holds several projections is named once.

    Raises ModelError when two projections are the same rows of the same tensor.
    """
    changes = _changes(fusion)
    for name, projections in changes.items():
        if len({p.block for p in projections}) < len(projections):
            raise ModelError(
                f"{name} is shared by several projections",
                "weights of its own for every projection",
                "leave its projections or layers out of the fusion",
            )
    return list(changes)


def _changes(fusion: Fusion) -> dict[str, list[Projection]]:
    """Tensor -> the fused projections in it."""
    found: dict[str, list[Projection]] = defaultdict(list)
    for line in fusion.figures():
        projection = fusion.projection(line["layer"], line["kind"])
        found[projection.weight].append(projection)
        if line["bias"]:
            found[_present(projection.bias)].append(projection)
    return dict(found)


def _patches(target: Checkpoint, fusion: Fusion, alpha: float, norm: str) -> dict[str, Callable[[Tensor], Tensor]]:
    names = fused_names(fusion)
    missing = sorted(set(names) - set(target.names))
    if missing:
        raise ModelError(
            f"{target.folder} lacks {len(missing)} tensors that were fused, first {missing[0]!r}",
            "the target model the plans were made for",
            "run again from the start with this target",
        )

    def patch(name: str, projections: list[Projection]) -> Callable[[Tensor], Tensor]:
        def changed(stored: Tensor) -> Tensor:
            new = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
            for p in projections:
                fused = fusion.fused(p.layer, p.kind)
                if name == p.weight:
                    W, _ = apply(p.take(stored), None, fused, alpha, norm)
                    p.put(new, W)
                else:  # norm: keep rescales a bias with its row, so the row is read again
                    _, b = apply(read_weight(target, p), p.take(stored), fused, alpha, norm)
                    p.put(new, _present(b))
            return new

        return changed

    return {name: patch(name, projections) for name, projections in _changes(fusion).items()}


def _present(value: T | None) -> T:
    assert value is not None
    return value


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
