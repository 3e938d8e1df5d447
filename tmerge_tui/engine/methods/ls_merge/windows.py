"""Both models' chunks as batches of windows, in an order that seed and epoch decide, with one shard in memory.

Matrices are kept in shards of at most SHARD bytes; an epoch goes through the shards one after the other, and through
the windows of a shard in random order. What fits into one shard is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmerge_tui.engine.methods.ls_merge.chunks import filled
from tmerge_tui.engine.methods.ls_merge.manifest import Manifest, Matrix
from tmerge_tui.engine.methods.ls_merge.vae import depth_step
from tmerge_tui.models.pair import Pair

SHARD = 1 << 30  # bytes of chunks in fp32


@dataclass(frozen=True)
class Batch:
    """B windows of at most T chunks."""

    x: Tensor  # fp32 [B, T, c]
    weights: Tensor  # bool [B, T, c]: which numbers are weights
    depth: Tensor  # int64 [B]
    kind: Tensor  # int64 [B]

    @property
    def mask(self) -> Tensor:
        """bool [B, T]: which chunks are there."""
        return self.weights[:, :, 0]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device) for part in (self.x, self.weights, self.depth, self.kind)))


class Windows:
    def __init__(self, manifests: Pair[Manifest], kinds: Sequence[str], window: int, batch_size: int) -> None:
        self.kinds, self.window, self.batch_size = list(kinds), window, batch_size
        self.matrices = [(one, matrix) for one in (manifests.target, manifests.source) for matrix in one.matrices]
        self.shards = _shards([4 * matrix.chunks * one.c for one, matrix in self.matrices])
        self._held: dict[int, Tensor] = {}

    @property
    def chunks(self) -> int:
        return sum(matrix.chunks for _, matrix in self.matrices)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(self._windows(shard)) // self.batch_size) for shard in self.shards)

    def epoch(self, seed: int, number: int) -> list[list[tuple[int, int]]]:
        """(matrix, first chunk) of every window of every batch."""
        dice = torch.Generator().manual_seed(seed * 1_000_003 + number)
        batches = []
        for place in torch.randperm(len(self.shards), generator=dice).tolist():
            windows = self._windows(self.shards[place])
            order = [windows[i] for i in torch.randperm(len(windows), generator=dice).tolist()]
            batches += [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        return batches

    def batch(self, windows: Sequence[tuple[int, int]]) -> Batch:
        """Reads the shard of the windows if it is not in memory."""
        shard = next(shard for shard in self.shards if windows[0][0] in shard)
        if any(place not in self._held for place in shard):
            self._held = {place: self._read(place) for place in shard}
        rows = [self._held[place][first : first + self.window] for place, first in windows]
        x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        weights = torch.stack([self._filled(place, first, x.shape[1]) for place, first in windows])
        pairs = [self.matrices[place] for place, _ in windows]
        depth = torch.tensor([depth_step(matrix.layer, one.layout.layers) for one, matrix in pairs])
        return Batch(x, weights, depth, torch.tensor([self.kinds.index(matrix.kind) for _, matrix in pairs]))

    def _read(self, place: int) -> Tensor:
        one, matrix = self.matrices[place]
        return one.chunks(matrix).float()

    def _filled(self, place: int, first: int, length: int) -> Tensor:
        one, matrix = self.matrices[place]
        return filled(torch.arange(first, first + length), matrix.numbers, one.c)

    def _windows(self, shard: Sequence[int]) -> list[tuple[int, int]]:
        return [(i, first) for i in shard for first in range(0, self.matrices[i][1].chunks, self.window)]


def of_matrix(chunks: Tensor, matrix: Matrix, layers: int, kinds: Sequence[str], window: int) -> Batch:
    """All chunks or latents [n, d] of one matrix as windows; `weights` is True of those that are there."""
    n, width = chunks.shape
    count = -(-n // window)
    x = torch.nn.functional.pad(chunks, (0, 0, 0, count * window - n)).view(count, window, width)
    there = (torch.arange(count * window, device=chunks.device) < n).view(count, window, 1)
    depth = torch.full((count,), depth_step(matrix.layer, layers), device=chunks.device)
    return Batch(x, there, depth, torch.full((count,), list(kinds).index(matrix.kind), device=chunks.device))


def _shards(sizes: Sequence[int]) -> list[list[int]]:
    shards: list[list[int]] = [[]]
    held = 0
    for place, size in enumerate(sizes):
        if shards[-1] and held + size > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(place)
        held += size
    return shards
