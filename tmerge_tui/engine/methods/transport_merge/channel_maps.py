"""From transport plans to linear maps between the channels of two models. Pure functions; fp32 in, fp32 out.

A plan Q [n, n'] couples the n channels of a target side with the n' channels of a source side; it sums to 1. Fusion
needs two maps: Phi_out carries what leaves a projection from source to target, Phi_in^T what enters it the other way:

    Phi_out W_B Phi_in^T : target input -> source input -> source output -> target output             (eq. 14)

`coupling: plan` takes the plans themselves, as the paper writes it. Their entries are of order 1/(n n'), so the product
is orders of magnitude smaller than a weight. `coupling: barycentric` normalises them into averages: every target
channel is a mean of source channels (rows of Phi_out sum to 1), every source input a mean of target inputs (rows of
Phi_in^T sum to 1). Plans come from z-scores, so these are means of z-scores; `units: raw` conjugates both maps with the
channels' standard deviations, so that they carry activations in their own units (up to the channels' means, which only
a bias could absorb). A row that sparsification has emptied stays zero: nothing is transported there, nothing is NaN.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from tmerge_tui.models.pair import Pair
from tmerge_tui.run_folder import key


def sparsify(Q: Tensor, r: int | None) -> Tensor:  # Q [n, n'] -> [n, n']
    """Top-r intersection: an entry stays if it is among the r largest of its row and of its column (A.1).

    r=None keeps all. The mass of what goes is not handed to what stays; an entry-poor row can end up empty.
    """
    if r is None or (r >= Q.shape[0] and r >= Q.shape[1]):
        return Q
    kept = torch.ones_like(Q, dtype=torch.bool)
    for dim in (0, 1):
        largest = Q.topk(min(r, Q.shape[dim]), dim=dim, sorted=False).indices
        kept &= torch.zeros_like(kept).scatter_(dim, largest, True)
    return Q.masked_fill(~kept, 0)


class Plans(Protocol):
    def plan(self, side: str, l: int, m: int) -> Tensor: ...

    def order(self, side: str) -> str: ...


def channel_map(
    plans: Plans,
    side: str,
    l: int,
    m: int,
    end: Literal["in", "out"],
    coupling: str,
    *,
    r: int | None = None,
    std: Pair[Tensor] | None = None,
    permuted: int | None = None,
) -> Tensor:
    """Phi_out or Phi_in^T of target layer l and source layer m: the plan rebuilt, sparsified to r, made a map.

    permuted: the seed of the placebo, whose source channels come in a random order, one for sides that share a plan;
    None for the plan itself.
    """
    Q = plans.plan(side, l, m)
    if permuted is not None:
        Q = Q[:, permutation(permuted, plans.order(side), m, Q.shape[1]).to(Q.device)]
    std = None if std is None else std.each(lambda s: s.to(Q))
    return (out_map if end == "out" else in_map)(sparsify(Q, r), coupling, std)


def out_map(Q: Tensor, coupling: str, std: Pair[Tensor] | None = None) -> Tensor:
    """Phi_out [n, n'] from Q_out, or from some of its rows.

    plan: Q itself. barycentric: rows normalised to 1. With standard deviations: diag(s_A) Phi diag(1 / s_B).
    """
    if coupling == "plan":
        return Q
    Phi = _averages(Q, dim=1)
    if std is not None:
        Phi = std.target[:, None] * Phi * inverse(std.source)[None, :]
    return Phi


def in_map(Q: Tensor, coupling: str, std: Pair[Tensor] | None = None) -> Tensor:
    """Phi_in^T [n', n] from the whole of Q_in [n, n'].

    plan: Q^T. barycentric: columns of Q normalised to 1. With standard deviations: diag(s_B) Phi^T diag(1 / s_A).
    """
    if coupling == "plan":
        return Q.T
    Phi = _averages(Q, dim=0).T
    if std is not None:
        Phi = std.source[:, None] * Phi * inverse(std.target)[None, :]
    return Phi


def layer_weights(P: Tensor, coupling: str) -> Tensor:  # P [L, M] -> [L, M]
    """How much of every source layer enters a target layer.

    plan: P rescaled by L, the number of target layers that take part (rows of a coupling sum to 1/L).
    barycentric: rows normalised to 1. Rows of target layers that take no part stay zero.
    """
    if coupling == "plan":
        return P * int((P.sum(1) > 0).sum())
    return _averages(P, dim=1)


def permutation(seed: int, side: str, m: int, channels: int) -> Tensor:
    """The placebo's order of the source channels of one side and layer: random, the same on every machine and run."""
    generator = torch.Generator().manual_seed(int(key("permutation", seed, side, m)[:12], 16))
    return torch.randperm(channels, generator=generator)


def inverse(std: Tensor) -> Tensor:
    """1 / std, and 0 for a constant channel: it carries no signal to be scaled."""
    return torch.where(std > 0, 1 / std, 0)


def _averages(Q: Tensor, dim: int) -> Tensor:
    mass = Q.sum(dim, keepdim=True)
    return torch.where(mass > 0, Q / mass, 0)
