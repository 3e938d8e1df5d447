"""What a fusion has found: its pieces read back one target layer at a time, and mixed into weights at any strength."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tmerge_tui.errors import StorageError
from tmerge_tui.models.layout import Layout, Projection
from tmerge_tui.run_folder import RunDir, key

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

    def at(self, strengths: Mapping[str, float]) -> tuple[Fusion, float]:
        """(fusion, alpha) that mix every kind in at a strength of its own: alpha is the largest of `strengths`, and the
        fusion knows the share of each kind in it. A kind at 0, or not named, is left out."""
        alpha = max(strengths.values(), default=0.0)
        shares = {kind: strength / alpha for kind, strength in strengths.items() if strength}
        return Fusion(self.run, self.pieces, self.layout, self.notes, self.permuted, shares), alpha

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
        try:
            with safe_open(path, "pt") as file:
                lines = json.loads(file.metadata()["meta"])["projections"]
                yield file, [line for line in lines if self.shares is None or line["kind"] in self.shares]
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{path}: {error}", "a piece that fusion has finished", "delete that file and run again"
            ) from error

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
    bias = bias.to(W, copy=True)
    if fused.bias is not None:
        own = bias[index]
        bias[index] = own.lerp(fused.bias.to(W) if transported else torch.zeros_like(own), alpha) * factor
    return W, bias
