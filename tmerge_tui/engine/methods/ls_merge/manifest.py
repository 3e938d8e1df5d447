"""Which numbers of a model are which chunks: every matrix with its place, shape, scale and number of chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from torch import Tensor

from tmerge_tui.engine.methods.ls_merge.chunks import count_of, from_chunks, scale_of, to_chunks
from tmerge_tui.errors import NumericsError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import Layout
from tmerge_tui.models.parameters import read_weight
from tmerge_tui.run_folder import RunDir, key


@dataclass(frozen=True)
class Matrix:
    """One projection's weight [rows, columns]."""

    layer: int
    kind: str
    rows: int
    columns: int
    offset: int  # of its first chunk among those of its model
    chunks: int
    scale: float

    @property
    def numbers(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Manifest:
    """The matrices of one model in the order of their chunks, c numbers each. Reading is lazy, a matrix at a time."""

    checkpoint: Checkpoint
    layout: Layout
    c: int
    squash: bool
    matrices: tuple[Matrix, ...]

    @cached_property
    def _places(self) -> dict[tuple[int, str], Matrix]:
        return {(matrix.layer, matrix.kind): matrix for matrix in self.matrices}

    def get(self, layer: int, kind: str) -> Matrix | None:
        return self._places.get((layer, kind))

    def layer(self, layer: int) -> list[Matrix]:
        return [matrix for matrix in self.matrices if matrix.layer == layer]

    def weight(self, matrix: Matrix) -> Tensor:
        """W [rows, columns] in the file's type."""
        projection = self.layout.get(matrix.layer, matrix.kind)
        assert projection is not None, f"no {matrix.kind} in layer {matrix.layer}"
        return read_weight(self.checkpoint, projection)

    def chunks(self, matrix: Matrix) -> Tensor:
        """fp64 [chunks, c]."""
        return to_chunks(self.weight(matrix), self.c, matrix.scale, self.squash)

    def write_back(self, matrix: Matrix, chunks: Tensor) -> Tensor:
        """W [rows, columns] out of chunks [chunks, c], with this matrix' scale; the inverse of `chunks`."""
        return from_chunks(chunks, (matrix.rows, matrix.columns), matrix.scale, self.squash)


def read_manifest(
    checkpoint: Checkpoint,
    layout: Layout,
    kinds: Sequence[str],
    c: int,
    squash: bool,
    run: RunDir,
    done: Callable[[bool], None],  # after every matrix; whether it was read now
) -> Manifest:
    """Streams over the weights once for their scales, or reads the piece of an earlier run.

    Raises NumericsError for a matrix that is not finite, StorageError.
    """
    wanted = [p for layer in range(layout.layers) for kind in kinds if (p := layout.get(layer, kind)) is not None]
    path = run.piece("manifest", key("ls-manifest-1", checkpoint.fingerprint(), kinds, c), ".json")
    known = [Matrix(**line) for line in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
    found: list[Matrix] = []
    for place, p in enumerate(wanted):
        if known:
            found.append(known[place])
        else:
            scale = scale_of(read_weight(checkpoint, p))
            if not scale < float("inf"):  # NaN too
                checkpoint.check_finite([p.weight], lambda done: None)
                raise NumericsError(f"{p.weight} of {checkpoint.folder} has no finite size", "finite weights")
            offset = found[-1].offset + found[-1].chunks if found else 0
            found.append(Matrix(p.layer, p.kind, p.d_out, p.d_in, offset, count_of(p.d_out * p.d_in, c), scale))
        done(not known)
    if not known:
        run.save_json(path, [asdict(matrix) for matrix in found])
    return Manifest(checkpoint, layout, c, squash, tuple(found))
