"""Latents mixed at any strength, decoded, and written back: the merge and its placebos as updates of the target.

z = (1 - alpha) z_target + alpha z_source, read by the one decoder as the target's matrix; scaled as the target's, each
row at the target's norm. At strength 0 nothing is written: the target through the autoencoder is a placebo, not the
target.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.engine.methods.ls_merge.encode import CARRIED, SOURCES, Coder
from tmerge_tui.engine.methods.ls_merge.manifest import Manifest, Matrix
from tmerge_tui.engine.methods.method import Shares
from tmerge_tui.engine.weights.update import Change
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import Projection
from tmerge_tui.run_folder import key, open_piece

RECONSTRUCTED, NOISE, TRUNCATED = "reconstructed", "noise", "truncated"


class Latents:
    """The pieces of all layers, read one matrix at a time. `key` names the content of all of them."""

    def __init__(self, pieces: Mapping[int, Path], coder: Callable[[], Coder], manifest: Manifest, seed: int) -> None:
        self.pieces, self.coder, self.manifest, self.seed = dict(pieces), coder, manifest, seed
        self.key = key("latents", sorted((layer, path.name) for layer, path in self.pieces.items()))

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """What the report has of every matrix, from the pieces' headers."""
        rows = []
        for layer, path in sorted(self.pieces.items()):
            with open_piece(path) as file:
                meta = json.loads(file.metadata()["meta"])
            rows += [{"layer": layer, "source": meta["source"], **row} for row in meta["rows"]]
        return rows

    @cached_property
    def errors(self) -> dict[tuple[int, str], float]:
        return {(row["layer"], row["kind"]): row["error"] for row in self.lines}

    def matrices(self) -> Iterator[Matrix]:
        for row in self.lines:
            found = self.manifest.get(row["layer"], row["kind"])
            assert found is not None, f"no {row['kind']} in layer {row['layer']}"
            yield found

    def mixed(self, what: str, matrix: Matrix, alpha: float) -> Tensor:
        """z [n, latent] of a matrix at a strength."""
        with open_piece(self.pieces[matrix.layer]) as file:
            target = file.get_tensor(f"{matrix.kind}.target")
            if what == RECONSTRUCTED:
                return target
            other = file.get_tensor(f"{matrix.kind}.{what if what in SOURCES else CARRIED}")
        if what == NOISE:  # as far from the target as the source is
            dice = torch.Generator().manual_seed(self.seed * 1_000_003 + matrix.offset)
            noise = torch.randn(target.shape, generator=dice)
            other = target + noise * ((other - target).norm() / noise.norm())
        return target.lerp(other, alpha)

    def decoded(self, what: str, matrix: Matrix, alpha: float) -> Tensor:
        """W [rows, columns] in fp32."""
        chunks = self.coder().decode(self.mixed(what, matrix, alpha), matrix, self.manifest.layout.layers)
        return self.manifest.write_back(matrix, chunks)


@dataclass(frozen=True, eq=False)
class LatentUpdate:
    """The merge at one strength, or what stands in the source's place; only kinds with a share are written."""

    latents: Latents
    what: str
    alpha: float
    shares: Shares | None
    row_norms: bool

    @property
    def target(self) -> Checkpoint:
        return self.latents.manifest.checkpoint

    @property
    def key(self) -> tuple[Any, ...]:
        shares = None if self.shares is None else dict(self.shares)
        return self.what != CARRIED, self.latents.key, self.what, self.alpha, shares, self.row_norms

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._matrices)

    def change(self, name: str, stored: Tensor) -> Change:
        new = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
        for projection, matrix in self._matrices[name]:
            W = projection.take(stored).float().cpu()
            projection.put(new, self._weights(matrix, W).to(new))
        return Change(new)

    def _weights(self, matrix: Matrix, W: Tensor) -> Tensor:
        if self.what == TRUNCATED:
            return truncated(W, self.latents.errors[matrix.layer, matrix.kind])
        strength = self.alpha * (1.0 if self.shares is None else self.shares[matrix.kind])
        new = self.latents.decoded(self.what, matrix, strength)
        return with_row_norms(new, W) if self.row_norms else new

    @cached_property
    def _matrices(self) -> dict[str, list[tuple[Projection, Matrix]]]:
        """Tensor of the file -> what of it is written."""
        found: dict[str, list[tuple[Projection, Matrix]]] = defaultdict(list)
        for matrix in self.latents.matrices():
            projection = self.latents.manifest.layout.get(matrix.layer, matrix.kind)
            assert projection is not None
            if self.alpha and (self.shares is None or self.shares.get(matrix.kind)):
                found[projection.weight].append((projection, matrix))
        return dict(found)


@dataclass(frozen=True, eq=False)
class Decoded:
    """The target's weights through an autoencoder that is still trained: what a moment is chosen by."""

    manifest: Manifest
    coder: Coder
    row_norms: bool
    content: str  # of the training
    step: int

    @property
    def target(self) -> Checkpoint:
        return self.manifest.checkpoint

    @property
    def key(self) -> tuple[Any, ...]:
        return True, "ls-moment", self.content, self.step, self.row_norms

    @cached_property
    def _projections(self) -> dict[str, list[tuple[Projection, Matrix]]]:
        found: dict[str, list[tuple[Projection, Matrix]]] = defaultdict(list)
        for matrix in self.manifest.matrices:
            projection = self.manifest.layout.get(matrix.layer, matrix.kind)
            assert projection is not None
            found[projection.weight].append((projection, matrix))
        return dict(found)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._projections)

    def change(self, name: str, stored: Tensor) -> Change:
        new = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
        layers = self.manifest.layout.layers
        for projection, matrix in self._projections[name]:
            latents = self.coder.encode(self.manifest.chunks(matrix), matrix, layers)
            W = self.manifest.write_back(matrix, self.coder.decode(latents, matrix, layers))
            own = projection.take(stored).float().cpu()
            projection.put(new, (with_row_norms(W, own) if self.row_norms else W).to(new))
        return Change(new)


def with_row_norms(W: Tensor, own: Tensor) -> Tensor:
    """Each row of W [out, in] at the norm of the same row of `own`; one that is zero has no direction and stays so."""
    norms = W.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, W * (own.norm(dim=1, keepdim=True) / norms.clamp(min=1e-30)), W)


def truncated(W: Tensor, error: float) -> Tensor:
    """The matrix of lowest rank whose relative error is at most `error`: smoothing that knows of no latent space."""
    U, s, V = torch.linalg.svd(W.double(), full_matrices=False)
    lost = s.square().flip(0).cumsum(0).flip(0)  # what is lost when the values from here on are left out
    rank = max(1, int((lost > (error**2) * lost[0]).sum()))
    return ((U[:, :rank] * s[:rank]) @ V[:rank]).float()
