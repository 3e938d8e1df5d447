"""Latents of both models, layer by layer (stage "encode"): the target's own, and what the source's become beside them.

Of every target layer a piece: `KIND.target`, `KIND.carried` and the placebos' `KIND.random_source`,
`KIND.permuted_chunks`, each [chunks, latent] in fp32. A placebo goes the source's whole way: encoded, matched, mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.engine.methods.ls_merge.chunks import to_chunks
from tmerge_tui.engine.methods.ls_merge.manifest import Manifest, Matrix
from tmerge_tui.engine.methods.ls_merge.maps import Bures, bures, matched_rows, source_layer
from tmerge_tui.engine.methods.ls_merge.vae import Vae
from tmerge_tui.engine.methods.ls_merge.windows import of_matrix
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import LsMerge
from tmerge_tui.run_folder import RunDir, key

CARRIED, RANDOM, PERMUTED = "carried", "random_source", "permuted_chunks"
SOURCES = (CARRIED, RANDOM, PERMUTED)
AT_ONCE = 64  # windows in one pass


@dataclass(frozen=True)
class Coder:
    """The trained autoencoder as a function of whole matrices."""

    vae: Vae
    kinds: tuple[str, ...]
    window: int
    device: torch.device

    @torch.no_grad()
    def encode(self, chunks: Tensor, matrix: Matrix, layers: int) -> Tensor:
        """Means [n, latent] in fp32 of chunks [n, c] of a matrix of a model with so many layers."""
        return self._windowed(chunks, matrix, layers, lambda *window: self.vae.encode(*window)[0])

    @torch.no_grad()
    def decode(self, latents: Tensor, matrix: Matrix, layers: int) -> Tensor:
        """Chunks [n, c] in fp32 of latents [n, latent]."""
        return self._windowed(latents, matrix, layers, self.vae.decode)

    def _windowed(self, rows: Tensor, matrix: Matrix, layers: int, pass_through: Any) -> Tensor:
        batch = of_matrix(rows.float().to(self.device), matrix, layers, self.kinds, self.window)
        parts = zip(*(part.split(AT_ONCE) for part in (batch.x, batch.depth, batch.kind, batch.mask)), strict=True)
        return torch.cat([pass_through(*part) for part in parts]).flatten(0, 1)[: len(rows)].cpu()


@dataclass(frozen=True)
class Encoder:
    coder: Callable[[], Coder]  # loaded when something has to be encoded
    manifests: Pair[Manifest]
    options: LsMerge
    seed: int
    content: str  # names the autoencoder
    run: RunDir

    def source_of(self, layer: int) -> int | None:
        depths = self.manifests.each(lambda one: one.layout.layers)
        return source_layer(self.options.depth, layer, depths.target, depths.source)

    def layer(self, layer: int) -> tuple[Path, bool] | None:
        """(piece, whether it was made now) of a target layer; None where no source layer or matrix meets it."""
        m = self.source_of(layer)
        theirs = {} if m is None else {matrix.kind: matrix for matrix in self.manifests.source.layer(m)}
        ours = {matrix.kind: matrix for matrix in self.manifests.target.layer(layer) if matrix.kind in theirs}
        if not ours:
            return None
        wanted = (CARRIED, *(name for name in (RANDOM, PERMUTED) if name in self.options.controls))
        asked = self.options.that_affect("layers")
        path = self.run.piece("latents", key("ls-latents-1", self.content, asked, layer, m, self.seed, wanted))
        if path.exists():
            return path, False
        tensors, rows = self._encoded(ours, theirs, wanted)
        self.run.save(path, tensors, {"layer": layer, "source": m, "rows": rows})
        return path, True

    def _encoded(
        self, ours: Mapping[str, Matrix], theirs: Mapping[str, Matrix], wanted: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        own = {kind: self.manifests.target.chunks(matrix) for kind, matrix in ours.items()}
        layers = self.manifests.target.layout.layers
        target = {kind: self.coder().encode(chunks, ours[kind], layers) for kind, chunks in own.items()}
        tensors = {f"{kind}.target": z for kind, z in target.items()}
        found: dict[str, dict[str, Any]] = {
            kind: {"kind": kind, "chunks": len(z), "error": self._error(own[kind], z, ours[kind])}
            for kind, z in target.items()
        }
        for name in wanted:
            chunks = self._source(name, {kind: theirs[kind] for kind in ours})
            latents = {kind: self._encoded_source(chunks[kind], theirs[kind]) for kind in ours}
            matched = {kind: matched_rows(self.options.rows, z, target[kind]) for kind, z in latents.items()}
            fitted = self._fitted(matched, target)
            for kind, z in matched.items():
                tensors[f"{kind}.{name}"] = z if fitted is None else fitted(z)
            if name == CARRIED:
                for kind, z in matched.items():
                    raw = matched_rows("resample", chunks[kind], own[kind])
                    found[kind] |= {
                        "source_chunks": len(chunks[kind]),
                        "latent_distance": _distance(z, target[kind]),
                        "raw_distance": _distance(raw, own[kind]),
                        "moved": _distance(tensors[f"{kind}.{name}"], target[kind]),
                        "bures": None if fitted is None else fitted.distance,
                        "shrinkage": None if fitted is None else list(fitted.shrinkage),
                    }
        return tensors, list(found.values())

    def _source(self, name: str, matrices: Mapping[str, Matrix]) -> dict[str, Tensor]:
        """fp64 chunks of a source layer by kind: its own, in random order inside the layer, or of no model at all."""
        one = self.manifests.source
        first = next(iter(matrices.values()))
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + first.offset)
        if name == RANDOM:
            # models begin with normal weights, of which scaling leaves nothing but that
            return {
                kind: to_chunks(torch.randn(matrix.rows, matrix.columns, generator=dice), one.c, 1.0, one.squash)
                for kind, matrix in matrices.items()
            }
        chunks = [one.chunks(matrix) for matrix in matrices.values()]
        if name == PERMUTED:
            every = torch.cat(chunks)
            chunks = list(every[torch.randperm(len(every), generator=dice)].split([len(part) for part in chunks]))
        return dict(zip(matrices, chunks, strict=True))

    def _encoded_source(self, chunks: Tensor, matrix: Matrix) -> Tensor:
        return self.coder().encode(chunks, matrix, self.manifests.source.layout.layers)

    def _fitted(self, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Bures | None:
        """One map for the layer pair; None where none is wanted, or with fewer chunks than latent numbers."""
        clouds = torch.cat(list(source.values())), torch.cat(list(target.values()))
        if not self.options.bures or min(map(len, clouds)) < clouds[0].shape[1]:
            return None
        return bures(*clouds)

    def _error(self, chunks: Tensor, latents: Tensor, matrix: Matrix) -> float:
        """||decoded - W|| / ||W||, of the weights themselves."""
        one = self.manifests.target
        decoded = one.write_back(matrix, self.coder().decode(latents, matrix, one.layout.layers).double())
        W = one.weight(matrix).double()
        return float((decoded - W).norm() / W.norm()) if float(W.norm()) else 0.0


def _distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||"""
    size = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / size if size else 0.0
