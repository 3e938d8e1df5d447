"""What a fusion has found: its pieces read back one target layer at a time, and mixed into weights at any strength."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tmerge_tui.engine.weights.update import Change
from tmerge_tui.errors import ModelError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import Layout, Projection
from tmerge_tui.models.parameters import read_weight
from tmerge_tui.run_folder import RunDir, key, open_piece

COLUMN_KINDS = ("o", "down")  # they read the neurons that are fused; all others write them
Axis = Literal["rows", "columns"]


@dataclass(frozen=True, eq=False)
class FusedProjection:
    """What was transported to one projection of the target."""

    layer: int
    kind: str
    axis: Axis
    index: Tensor  # int64 [k], ascending: the selected rows, or columns
    moved: Tensor  # fp32 [k, d_in], or [d_out, k]
    bias: Tensor | None  # fp32 [k]; None: the target's bias, if any, is left alone
    stored: torch.dtype  # of the tensor in the target's file
    transported_norm: float  # Frobenius norm of `moved`
    target_norm: float  # of the target's entries that it meets
    cosine: float  # between the two
    empty: int  # selected rows or columns that received nothing
    share: float = 1.0  # of alpha at which it is mixed in

    @property
    def ratio(self) -> float:
        return self.transported_norm / self.target_norm if self.target_norm else 0.0

    def figures(self) -> dict[str, Any]:
        """The numbers, as the piece's header and the report keep them."""
        names = ("layer", "kind", "axis", "transported_norm", "target_norm", "ratio", "cosine", "empty")
        return {name: getattr(self, name) for name in names} | {"k": len(self.index), "bias": self.bias is not None}


class Fusion:
    """Reads the pieces of a fusion, one projection at a time. `key` names the content of all of them.

    Reading raises StorageError when a piece has gone or is damaged.
    """

    def __init__(
        self,
        run: RunDir,
        pieces: Mapping[int, Path],
        layout: Layout,
        notes: Sequence[str],
        permuted: bool,
        shares: Mapping[str, float] | None = None,  # of alpha, by kind; a kind that is not named is left out
    ) -> None:
        self.run, self.pieces, self.layout, self.permuted = run, dict(pieces), layout, permuted
        self.notes = tuple(notes)
        self.shares = None if shares is None else {kind: share for kind, share in shares.items() if share}
        named = sorted((layer, path.name) for layer, path in self.pieces.items())
        self.key = key("fusion", named) if self.shares is None else key("fusion", named, self.shares)

    def sharing(self, shares: Mapping[str, float] | None) -> Fusion:
        """The same, each kind mixed in at its share of alpha; None: all of it at every kind."""
        return Fusion(self.run, self.pieces, self.layout, self.notes, self.permuted, shares)

    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.pieces))

    def layer(self, layer: int) -> list[FusedProjection]:
        with self._open(layer) as (file, lines):
            return [self._read(file, line) for line in lines]

    def fused(self, layer: int, kind: str) -> FusedProjection:
        with self._open(layer) as (file, lines):
            return next(self._read(file, line) for line in lines if line["kind"] == kind)

    def projection(self, layer: int, kind: str) -> Projection:
        """Names and shape of a fused projection in the target."""
        found = self.layout.get(layer, kind)
        assert found is not None, f"no {kind} in layer {layer}"
        return found

    def figures(self) -> list[dict[str, Any]]:
        """The report's table of projections, from the pieces' headers alone."""
        rows = []
        for layer in self.layers():
            with self._open(layer) as (_, lines):
                rows += [{name: value for name, value in line.items() if name != "stored"} for line in lines]
        return rows

    def __iter__(self) -> Iterator[FusedProjection]:
        for layer in self.layers():
            yield from self.layer(layer)

    @contextmanager
    def _open(self, layer: int) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        path = self.pieces[layer]
        with open_piece(path) as file:
            lines = json.loads(file.metadata()["meta"])["projections"]
            yield file, [line for line in lines if self.shares is None or line["kind"] in self.shares]

    def _read(self, file: Any, line: Mapping[str, Any]) -> FusedProjection:
        kind = line["kind"]
        names = ("layer", "kind", "axis", "transported_norm", "target_norm", "cosine", "empty")
        return FusedProjection(
            index=file.get_tensor(f"{kind}.index"),
            moved=file.get_tensor(f"{kind}.moved"),
            bias=file.get_tensor(f"{kind}.bias") if line["bias"] else None,
            stored=getattr(torch, line["stored"]),
            share=1.0 if self.shares is None else self.shares[kind],
            **{name: line[name] for name in names},
        )


def axis_of(kind: str) -> Axis:
    return "columns" if kind in COLUMN_KINDS else "rows"


def apply(
    W: Tensor,  # [d_out, d_in], any float type
    bias: Tensor | None,  # [d_out]
    fused: FusedProjection,
    alpha: float,
    norm: str,
    transported: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """(W', bias') in fp32 or better: W + alpha mask (moved - W), the same for the bias (eqs. 14, 22). Pure.

    alpha is taken times `fused.share`.

    norm "keep": after mixing, each fused row (or column) is rescaled to the target's norm, its bias by the same factor.
    A row that mixing has left at zero has no direction to keep and stays the target's.
    transported=False is the shrink placebo, (1 - alpha) W on the same rows; with norm "keep" it is the identity.
    """
    alpha *= fused.share
    W = W.to(torch.promote_types(W.dtype, torch.float32), copy=True)
    if not transported and norm == "keep":
        return W, None if bias is None else bias.to(W, copy=True)
    dim, index = (0, fused.index.to(W.device)) if fused.axis == "rows" else (1, fused.index.to(W.device))
    old = W.index_select(dim, index)
    new = old.lerp(fused.moved.to(W) if transported else torch.zeros_like(old), alpha)
    factor = torch.ones(len(index), dtype=W.dtype, device=W.device)
    if norm == "keep":
        before, after = (torch.linalg.vector_norm(x, dim=1 - dim) for x in (old, new))
        new = torch.where((after > 0).unsqueeze(1 - dim), new * (before / after).unsqueeze(1 - dim), old)
        factor = torch.where(after > 0, before / after, 1)
    W.index_copy_(dim, index, new)
    if bias is None:
        return W, None
    return W, _mixed_bias(bias.to(W, copy=True), fused, alpha, factor, transported)


def _mixed_bias(
    bias: Tensor, fused: FusedProjection, alpha: float, factor: Tensor | float, transported: bool
) -> Tensor:
    if fused.bias is not None:
        index = fused.index.to(bias.device)
        own = bias[index]
        bias[index] = own.lerp(fused.bias.to(bias) if transported else torch.zeros_like(own), alpha) * factor
    return bias


@dataclass(frozen=True, eq=False)
class FusedUpdate:
    """A fusion mixed into the target at one strength. transported=False: the shrink placebo."""

    fusion: Fusion
    target: Checkpoint
    alpha: float
    norm: str
    transported: bool = True

    @property
    def key(self) -> tuple[Any, ...]:
        return not self.transported, self.fusion.key, self.alpha, self.norm

    @property
    def names(self) -> tuple[str, ...]:
        """Raises ModelError when two projections are the same rows of the same tensor."""
        for name, projections in self._projections.items():
            if len({p.block for p in projections}) < len(projections):
                raise ModelError(
                    f"{name} is shared by several projections",
                    "weights of its own for every projection",
                    "leave its projections or layers out of the fusion",
                )
        return tuple(self._projections)

    def change(self, name: str, stored: Tensor) -> Change:
        parts = [self._part(name, p, stored) for p in self._projections[name]]
        dim = parts[0][0]
        return Change(torch.cat([values for _, _, values in parts], dim), dim, torch.cat([at for _, at, _ in parts]))

    def _part(self, name: str, p: Projection, stored: Tensor) -> tuple[int, Tensor, Tensor]:
        """(dimension, indices, new entries) of one projection in a stored tensor."""
        fused = self.fusion.fused(p.layer, p.kind)
        index = fused.index.to(stored.device)
        if name == p.weight:
            W, _ = apply(p.take(stored), None, fused, self.alpha, self.norm, self.transported)
            dim, places = p.locate(fused.axis, index)
            entries = W.index_select(0 if fused.axis == "rows" else 1, index)
            return dim, places, entries.T if p.transposed else entries
        bias = p.take(stored)
        if self.norm == "keep":  # a bias is rescaled with its row, so the row is read again
            W = read_weight(self.target, p).to(stored.device)
            _, b = apply(W, bias, fused, self.alpha, self.norm, self.transported)
            assert b is not None
        else:
            wide = bias.to(torch.promote_types(bias.dtype, torch.float32), copy=True)
            b = _mixed_bias(wide, fused, self.alpha * fused.share, 1.0, self.transported)
        return 0, p.locate("rows", index)[1], b[index]

    @cached_property
    def _projections(self) -> dict[str, list[Projection]]:
        """Tensor of the file -> the fused projections in it."""
        found: dict[str, list[Projection]] = defaultdict(list)
        for line in self.fusion.figures():
            p = self.fusion.projection(line["layer"], line["kind"])
            found[p.weight].append(p)
            if line["bias"]:
                assert p.bias is not None
                found[p.bias].append(p)
        return dict(found)
