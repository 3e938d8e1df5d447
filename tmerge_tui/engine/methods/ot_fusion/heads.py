"""Maps of attention: whole heads with each other, and their channels within.

A key-value head t of the target takes part of a source's s by the plan G [K, K'], its query heads a those b of the
source by A [H, H'], which has mass only where G has: the sums of A's blocks are G. So k and v follow G, q and o follow
A, and groups stay together whatever the two numbers of heads. Heads are matched exactly: a mean of heads attends to
nothing. Within a pair of heads q and k share one plan of their channels, v and o another.

Where both models turn queries and keys by their position (RoPE), a pair of channels keeps its rank among the speeds and
its two channels their places; nothing else leaves q . k what it is. Heads with slopes of their own (ALiBi) keep order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tmerge_tui.engine.methods.ot_fusion.channel_map import ChannelMap
from tmerge_tui.engine.methods.ot_fusion.coupling import assigned, couple, exact, in_order, marginal
from tmerge_tui.models.layout import Heads
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import OtFusion

FORBIDDEN = 1e3  # beside costs in [0, 2]: query heads of key-value heads that are not matched
KINDS = ("q", "k", "v", "o")


@dataclass(frozen=True)
class HeadSpaces:
    """What is to be known of the attention of a layer."""

    heads: Heads
    turned: Tensor | None  # int64 [pairs, 2] of a head's channels, fastest first; None: positions turn nothing
    sloped: bool = False  # each head sees as far as its number says


@dataclass(frozen=True)
class HeadMaps:
    q: ChannelMap  # [H c, H' c'], and so on for channels of all heads
    k: ChannelMap
    v: ChannelMap
    o: ChannelMap  # of what enters o
    head: ChannelMap  # [c, c'] of q and k within a head, for norms that all heads share
    cost: float  # <C, T> of q, k, v and o, their mean
    pairs: tuple[tuple[int, int], ...]  # query heads (target, source) that are matched

    def to(self, device: torch.device) -> HeadMaps:
        q, k, v, o, head = (made.to(device) for made in (self.q, self.k, self.v, self.o, self.head))
        return HeadMaps(q, k, v, o, head, self.cost, self.pairs)


def head_maps(
    costs: dict[str, Tensor],  # of KINDS: channels of q and o [H c, H' c'], of k and v [K c, K' c']
    spaces: Pair[HeadSpaces],
    options: OtFusion,
    strength: Pair[Tensor] | None = None,  # of what enters o [H c] and [H' c']: mass by importance
) -> HeadMaps:
    """Maps of one layer pair. Raises NumericsError as `couple`."""
    ours, theirs = spaces.target.heads, spaces.source.heads
    blocks = {kind: _blocks(costs[kind].double().cpu(), ours, theirs, kind) for kind in KINDS}
    K, K_ = ours.keys, theirs.keys
    group = {
        kind: blocks[kind].view(K, ours.queries // K, K_, theirs.queries // K_, *blocks[kind].shape[2:]).mean((1, 3))
        for kind in ("q", "o")
    }  # [K, K', c, c']: mean over the query heads of a pair of groups
    masses = (
        None
        if strength is None
        else Pair(target=_by_head(strength.target, ours), source=_by_head(strength.source, theirs))
    )
    inner_qk, inner_v = torch.zeros_like(blocks["k"]), torch.zeros_like(blocks["v"])
    for t in range(K):
        for s in range(K_):
            inner_qk[t, s] = _turned(blocks["k"][t, s] + group["q"][t, s], spaces, options)
            a, b = (
                (None, None) if masses is None else (_within(masses.target, t, ours), _within(masses.source, s, theirs))
            )
            inner_v[t, s] = couple(blocks["v"][t, s] + group["o"][t, s], options, a, b).T
    to_group = torch.arange(ours.queries) // (ours.queries // K), torch.arange(theirs.queries) // (theirs.queries // K_)
    at = (to_group[0][:, None], to_group[1][None, :])
    query = (blocks["q"] * inner_qk[at]).sum((2, 3)) + (blocks["o"] * inner_v[at]).sum((2, 3))  # [H, H']
    keys = (blocks["k"] * inner_qk).sum((2, 3)) + (blocks["v"] * inner_v).sum((2, 3))  # [K, K']
    A = _matched(query, keys, spaces, options, None if masses is None else masses.each(lambda mass: mass.sum(1)))
    G = torch.zeros(K, K_, dtype=torch.float64)
    G.index_put_(tuple(index.expand(A.shape) for index in at), A, accumulate=True)
    cost = float((A * query).sum() + (G * keys).sum()) / len(KINDS)
    overall = (G[:, :, None, None] * inner_qk).sum((0, 1))
    return HeadMaps(
        q=_channels(A, inner_qk[at]),
        k=_channels(G, inner_qk),
        v=_channels(G, inner_v),
        o=_channels(A, inner_v[at]),
        head=ChannelMap(overall),
        cost=cost,
        pairs=tuple((a, b) for a, b in A.nonzero().tolist()),
    )


def _blocks(C: Tensor, ours: Heads, theirs: Heads, kind: str) -> Tensor:
    """[H c, H' c'] -> [H, H', c, c']"""
    n, m = (ours.queries, theirs.queries) if kind in ("q", "o") else (ours.keys, theirs.keys)
    return C.view(n, ours.channels, m, theirs.channels).permute(0, 2, 1, 3).contiguous()


def _channels(heads: Tensor, inner: Tensor) -> ChannelMap:
    """Heads [n, m] and channels within [n, m, c, c'] -> [n c, m c']"""
    n, m, c, d = inner.shape
    return ChannelMap((heads[:, :, None, None] * inner).permute(0, 2, 1, 3).reshape(n * c, m * d))


def _turned(C: Tensor, spaces: Pair[HeadSpaces], options: OtFusion) -> Tensor:
    """The plan [c, c'] of q and k within a pair of heads: pairs that positions turn by rank, the rest by cost."""
    pairs = spaces.each(lambda space: space.turned)
    if pairs.target is None or pairs.source is None:
        return couple(C, options).T
    T = torch.zeros_like(C)
    ranks = in_order(len(pairs.target), len(pairs.source))
    ranks = _one_to_one(ranks) if options.solver == "hard" else ranks
    turned = 2 * len(pairs.target) / C.shape[0]
    for place in (0, 1):
        T[pairs.target[:, place][:, None], pairs.source[:, place]] = ranks * (turned / 2)
    free = [_others(each, size) for each, size in zip((pairs.target, pairs.source), C.shape, strict=True)]
    if len(free[0]) and len(free[1]):
        T[free[0][:, None], free[1]] = couple(C[free[0][:, None], free[1]], options).T * (1 - turned)
    return T / T.sum()


def _one_to_one(T: Tensor) -> Tensor:
    """The assignment that keeps most of T's mass."""
    return assigned(-T)


def _others(pairs: Tensor, channels: int) -> Tensor:
    free = torch.ones(channels, dtype=torch.bool)
    free[pairs.flatten()] = False
    return free.nonzero().flatten()


def _matched(
    query: Tensor, keys: Tensor, spaces: Pair[HeadSpaces], options: OtFusion, masses: Pair[Tensor] | None
) -> Tensor:
    """A [H, H'] from the costs of query heads [H, H'] and of key-value heads [K, K']."""
    if spaces.target.sloped and spaces.source.sloped:
        T = in_order(*query.shape)
        return _one_to_one(T) if options.solver == "hard" else T
    share = [n // k for n, k in zip(query.shape, keys.shape, strict=True)]
    solve: Callable[..., Tensor] = (lambda C, a, b: assigned(C)) if options.solver == "hard" else exact
    a, b = (None, None) if masses is None else (masses.target, masses.source)
    best = torch.zeros_like(keys)  # of the query heads of two groups, were the groups matched
    for t in range(len(keys)):
        for s in range(keys.shape[1]):
            rows, columns = slice(t * share[0], (t + 1) * share[0]), slice(s * share[1], (s + 1) * share[1])
            C = query[rows, columns]
            within = (
                (None, None) if a is None or b is None else (a[rows] / a[rows].sum(), b[columns] / b[columns].sum())
            )
            T = solve(C, *within)
            best[t, s] = (C * T).sum()
    grouped = (None, None) if a is None or b is None else (a.view(-1, share[0]).sum(1), b.view(-1, share[1]).sum(1))
    G = solve(keys + best, *grouped)
    allowed = (G > 0).repeat_interleave(share[0], 0).repeat_interleave(share[1], 1)
    A = solve(query + FORBIDDEN * ~allowed, a, b)
    return A * allowed


def _by_head(strength: Tensor, heads: Heads) -> Tensor:
    """Mass of every channel of every query head, [H, c]"""
    mass = marginal(strength)
    assert mass is not None
    return mass.view(heads.queries, heads.channels)


def _within(mass: Tensor, group: int, heads: Heads) -> Tensor:
    """Mass of the channels of one group's value head, [c]"""
    share = heads.queries // heads.keys
    own = mass[group * share : (group + 1) * share].sum(0)
    return own / own.sum()
