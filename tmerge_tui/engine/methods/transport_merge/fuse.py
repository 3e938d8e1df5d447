"""Plans become weights: what the source would put in place of the target's strongest rows or columns (eqs. 14, 22).

For target layer l and a projection,

    moved = sum over source layers m of  P[l, m]  Phi_out W_B^m Phi_in^T

is computed for the selected rows (q, k, v, gate, up) or columns (o, down) alone, one target layer at a time, with plans
rebuilt from their duals, and kept as one piece for each target layer. Nothing here depends on alpha or norm: `apply`
mixes `moved` into the target's weights for any strength, so a list of alphas fuses from the same pieces. All in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tmerge_tui.engine.methods.transport_merge import channel_maps
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports
from tmerge_tui.engine.methods.transport_merge.fusion import FusedProjection, Fusion, axis_of
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import CheckError, NumericsError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import Layout, Projection, side_of
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.parameters import read_bias, read_weight
from tmerge_tui.recipe import FusionOptions
from tmerge_tui.run_folder import RunDir, key


def check_k(layout: Layout, kinds: Sequence[str], k: int | Literal["all"]) -> list[str]:
    """Problems with `fusion.k`, found before any work: a projection with fewer neurons than are to be selected."""
    if k == "all":
        return []
    problems = []
    for kind in kinds:
        widths = [
            (p.d_in if axis_of(kind) == "columns" else p.d_out, p.layer) for p in layout.projections if p.kind == kind
        ]
        if widths and min(widths)[0] < k:
            width, layer = min(widths)
            problems.append(
                f"fusion.k: {k} neurons asked for, but {kind} of target layer {layer} has {width} {axis_of(kind)}; "
                f"use k: {width} or less, k: all, or leave {kind} out of fusion.projections"
            )
    return problems


def strongest(strength: Tensor, k: int | Literal["all"]) -> Tensor:  # [n] -> int64 [k], ascending
    """The k neurons of largest strength (A.5); of equals, the first."""
    if k == "all":
        return torch.arange(len(strength))
    return strength.cpu().argsort(descending=True, stable=True)[:k].sort().values


def fuse(
    transports: Transports,
    checkpoints: Pair[Checkpoint],
    layouts: Pair[Layout],
    kinds: Sequence[str],
    options: FusionOptions,
    top_layers: int,  # of the plans' recipe: what the layer plans kept
    seed: int,  # of the permutation
    run: RunDir,
    emit: Emit,
    permuted: bool = False,
    progress: Progress | None = None,  # the stage it belongs to; its own when None
    reference: Checkpoint | None = None,  # what the source was tuned from
) -> Fusion:
    """Computes the pieces that are not there yet: every target layer, or `options.layers`.

    permuted: the placebo. The source channels of every plan are put in a random order; marginals, sparsification and
    code path stay the same, what the alignment has found is lost.

    reference: what is carried is source minus reference, a task vector; `moved` is then the target's own weights plus
    that, so that mixing it in adds it.

    A source layer without the projection or without mass takes no part; a target layer without it is skipped.
    Raises CheckError for a k that is too large, NumericsError when a product is not finite, ModelError when weights
    cannot be read.
    """
    problems = check_k(layouts.target, kinds, options.k)
    if problems:
        raise CheckError(problems)
    work = _Work(transports, checkpoints, layouts, kinds, options, top_layers, seed if permuted else None, reference)
    chosen = range(layouts.target.layers) if options.layers is None else options.layers
    layers = [layer for layer in sorted(set(chosen)) if work.selected(layer)]
    pieces = {layer: run.piece("permuted" if permuted else "fused", work.key(layer)) for layer in layers}
    label = "Fusing through permuted plans (placebo)" if permuted else "Fusing weights"
    with nullcontext(progress) if progress else Progress(emit, "fuse", label, len(layers), "layers") as shown:
        for layer, path in pieces.items():
            if path.exists():
                shown.skip()
                continue
            tensors: dict[str, Tensor] = {}
            lines = []
            for fused in work.fuse(layer):
                tensors |= {f"{fused.kind}.index": fused.index, f"{fused.kind}.moved": fused.moved}
                if fused.bias is not None:
                    tensors[f"{fused.kind}.bias"] = fused.bias
                lines.append(fused.figures() | {"stored": str(fused.stored).removeprefix("torch.")})
            run.save(path, tensors, {"projections": lines})
            shown.advance(note=f"target layer {layer}")
    fusion = Fusion(run, pieces, layouts.target, _notes(layouts, kinds, options.biases), permuted)
    _warn_empty(fusion, emit)
    return fusion


@dataclass(frozen=True)
class _Work:
    """One fusion, layer by layer."""

    transports: Transports
    checkpoints: Pair[Checkpoint]
    layouts: Pair[Layout]
    kinds: Sequence[str]
    options: FusionOptions
    top_layers: int
    permutation: int | None  # its seed; None: nothing is permuted
    reference: Checkpoint | None = None

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """How much of every source layer enters a target layer, [L, M] for every kind."""
        coupling = self.options.coupling
        return {kind: channel_maps.layer_weights(self.transports.layer_plan(kind).P, coupling) for kind in self.kinds}

    def selected(self, l: int) -> dict[str, Projection]:
        """The target's projections of one layer that are fused."""
        found = {kind: self.layouts.target.get(l, kind) for kind in self.kinds}
        return {kind: projection for kind, projection in found.items() if projection is not None}

    def key(self, l: int) -> str:
        """Names all that the piece of a layer depends on; neither alpha nor norm."""
        options = self.options
        return key(
            "fuse-1",
            self.transports.key,
            self.checkpoints.target.fingerprint(),
            self.checkpoints.source.fingerprint(),
            l,
            sorted(self.selected(l)),
            [options.k, options.r, options.coupling, options.units, options.biases, self.top_layers],
            self.permutation,
            *([] if self.reference is None else [self.reference.fingerprint()]),
        )

    def fuse(self, l: int) -> list[FusedProjection]:
        projections = self.selected(l)
        index, moved, bias = {}, {}, {}
        for kind, ours in projections.items():
            end: Literal["in", "out"] = "in" if axis_of(kind) == "columns" else "out"
            X = self.transports.target.side(l, side_of(kind, end))
            index[kind] = strongest(X.abs().mean(0), self.options.k)
            k = len(index[kind])
            moved[kind] = torch.zeros((ours.d_out, k) if end == "in" else (k, ours.d_in))
            if self._fuses_bias(kind, ours):
                bias[kind] = torch.zeros(k)
        weights = {kind: self.weights[kind][l].tolist() for kind in projections}
        for m in range(self.layouts.source.layers):
            entering: dict[str, Tensor] = {}  # Phi_in^T of this layer pair: q, k, v share one, gate and up another
            for kind in projections:
                theirs = self.layouts.source.get(m, kind)
                if theirs is None or weights[kind][m] <= 0:
                    continue
                side = side_of(kind, "in")
                if side not in entering:
                    entering[side] = self._map(l, m, side, "in")
                Phi_out, Phi_in = self._map(l, m, side_of(kind, "out"), "out"), entering[side]
                chosen = index[kind].to(Phi_out.device)
                if axis_of(kind) == "rows":
                    Phi_out = Phi_out[chosen]
                else:
                    Phi_in = Phi_in[:, chosen]
                W_B = self._given(read_weight, theirs)
                assert W_B is not None
                W_B = W_B.to(Phi_out)
                moved[kind] += weights[kind][m] * carry(Phi_out, W_B, Phi_in).cpu()
                b_B = self._given(read_bias, theirs) if kind in bias else None
                if b_B is not None:
                    bias[kind] += weights[kind][m] * (Phi_out @ b_B.to(Phi_out)).cpu()
        return [self._measured(ours, index[kind], moved[kind], bias.get(kind)) for kind, ours in projections.items()]

    def _map(self, l: int, m: int, side: str, end: Literal["in", "out"]) -> Tensor:
        """Phi_out or Phi_in^T of a layer pair."""
        options, plans, std = self.options, self.transports, None
        if options.units == "raw":
            std = Pair(target=plans.target.side(l, side).std(0), source=plans.source.side(m, side).std(0))
        permuted = self.permutation
        return channel_maps.channel_map(
            plans, side, l, m, end, options.coupling, r=options.r, std=std, permuted=permuted
        )

    def _given(self, read: Callable[[Checkpoint, Projection], Tensor | None], theirs: Projection) -> Tensor | None:
        """A weight or bias of the source, less the reference's: differences of close numbers are taken in fp32."""
        given = read(self.checkpoints.source, theirs)
        if self.reference is None or given is None:
            return given
        before = read(self.reference, theirs)
        return given if before is None else given.float() - before.float()

    def _fuses_bias(self, kind: str, ours: Projection) -> bool:
        theirs = _biased(self.layouts.source, kind)
        return self.options.biases and axis_of(kind) == "rows" and ours.bias is not None and theirs

    def _measured(self, ours: Projection, index: Tensor, moved: Tensor, bias: Tensor | None) -> FusedProjection:
        axis = axis_of(ours.kind)
        if not all(bool(torch.isfinite(t).all()) for t in (moved, bias) if t is not None):
            raise NumericsError(
                f"what was transported to {ours.weight} is not finite",
                "finite source weights and plans",
                "check the source model; with units: raw, channels that hardly vary blow up: try units: z",
            )
        stored = self.checkpoints.target
        W = read_weight(stored, ours, index) if axis == "rows" else read_weight(stored, ours)[:, index]
        own = W.float()
        transported_norm, target_norm = float(moved.norm()), float(own.norm())
        both = transported_norm * target_norm
        cosine = float((moved * own).sum()) / both if both else 0.0
        empty = int((moved == 0).all(1 if axis == "rows" else 0).sum())
        if self.reference is not None:
            moved = own + moved
            kept = None if bias is None else read_bias(stored, ours)
            bias = None if bias is None or kept is None else kept[index].float() + bias
        return FusedProjection(
            layer=ours.layer,
            kind=ours.kind,
            axis=axis,
            index=index,
            moved=moved,
            bias=bias,
            stored=W.dtype,
            transported_norm=transported_norm,
            target_norm=target_norm,
            cosine=cosine,
            empty=empty,
        )


def carry(Phi_out: Tensor, W_B: Tensor, Phi_in: Tensor) -> Tensor:
    """Phi_out [a, d_out'] W_B [d_out', d_in'] Phi_in^T [d_in', b] -> [a, b], in the cheaper order (eq. 14)."""
    return torch.linalg.multi_dot([Phi_out, W_B, Phi_in])


def _biased(layout: Layout, kind: str) -> bool:
    return any(p.bias is not None for p in layout.projections if p.kind == kind)


def _notes(layouts: Pair[Layout], kinds: Sequence[str], biases: bool) -> list[str]:
    """What is left alone although it is there, and why."""
    notes = []
    for kind in kinds:
        if not _biased(layouts.target, kind):
            continue
        if axis_of(kind) == "columns":
            notes.append(f"{kind}: bias left alone; columns are fused, and each of them adds to every output")
        elif not biases:
            notes.append(f"{kind}: bias left alone, as fusion.biases says")
        elif not _biased(layouts.source, kind):
            notes.append(f"{kind}: bias left alone; the source has none")
    return notes


def _warn_empty(fusion: Fusion, emit: Emit) -> None:
    """Says how many selected neurons received nothing because sparsification emptied their row of the plan."""
    lines = fusion.figures()
    empty, total = sum(line["empty"] for line in lines), sum(line["k"] for line in lines)
    if empty:
        plans = "permuted plans" if fusion.permuted else "plans"
        emit(
            Warned(
                "fuse",
                f"{empty} of {total} selected neurons received nothing through the {plans}: no entry of theirs is "
                f"among the r largest of its row and of its column. A larger fusion.r, or none, avoids it",
            )
        )
