"""Copies of a model that compute what it computes: with everything in another order, and wider."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.tiny import edit_config, rewritten
from tmerge_tui.engine.methods.ot_fusion.heads import HeadSpaces
from tmerge_tui.models.layout import Layout, Projection

READS = {"o": "o", "down": "mlp"}
WRITES = {"q": "q", "k": "k", "v": "v", "o": "residual", "down": "residual", "gate": "mlp", "up": "mlp"}
Orders = dict[tuple[str, int | None], Tensor]


def shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def orders_of(layout: Layout, attention: tuple[HeadSpaces | None, ...], hidden: int) -> Orders:
    """A random order of every space that keeps what is computed: channels that positions turn stay within a head."""
    orders: Orders = {("residual", None): shuffled(hidden, 1)}
    for layer, spaces in enumerate(attention):
        up = layout.get(layer, "up")
        if up is not None:
            orders["mlp", layer] = shuffled(up.d_out, 2 + layer)
        if spaces is None:
            continue
        heads = spaces.heads
        share, c = heads.queries // heads.keys, heads.channels
        groups = torch.arange(heads.keys) if spaces.sloped else shuffled(heads.keys, 3)
        within = torch.arange(share) if spaces.sloped else shuffled(share, 4)
        queries = (groups[:, None] * share + within).flatten()
        qk = torch.stack([free(spaces, 10 * g) for g in range(heads.keys)])  # [K, c], of the copy's groups
        v = torch.stack([shuffled(c, 20 + g) for g in range(heads.keys)])
        of_query = torch.arange(heads.queries) // share
        orders["k", layer] = (groups[:, None] * c + qk).flatten()
        orders["v", layer] = (groups[:, None] * c + v).flatten()
        orders["q", layer] = (queries[:, None] * c + qk[of_query]).flatten()
        orders["o", layer] = (queries[:, None] * c + v[of_query]).flatten()
    return orders


def free(spaces: HeadSpaces, seed: int) -> Tensor:
    """An order of a head's channels that leaves those in place that positions turn."""
    c = spaces.heads.channels
    if spaces.turned is None:
        return shuffled(c, seed)
    order = torch.arange(c)
    rest = torch.tensor([i for i in range(c) if i not in set(spaces.turned.flatten().tolist())], dtype=torch.int64)
    order[rest] = rest[shuffled(len(rest), seed)]
    return order


def permuted_copy(folder: Path, out: Path, layout: Layout, orders: Orders) -> Path:
    def change(name: str, tensor: Tensor) -> Tensor:
        known, made = layout.tensor(name), tensor.clone()
        for p in known.projections:
            made = _of_projection(p, made, tensor, orders)
        if not known.projections:
            for dim, spaces in enumerate(known.spaces):
                at = (_space(name, spaces[0].name), spaces[0].layer)
                if at in orders:
                    made = made.index_select(dim, orders[at])
        return made

    return rewritten(folder, out, change)


def _space(name: str, space: str) -> str:
    if space == "heads.q":
        return "q"
    return "k" if space == "heads.kv" else space


def _of_projection(p: Projection, made: Tensor, stored: Tensor, orders: Orders) -> Tensor:
    W = p.take(stored)
    out = orders[WRITES[p.kind], None if WRITES[p.kind] == "residual" else p.layer]
    W = W[out]
    if W.ndim == 2:
        space = READS.get(p.kind, "residual")
        W = W[:, orders[space, None if space == "residual" else p.layer]]
    made = made.clone()
    p.put(made, W)
    return made


def widened(folder: Path, out: Path, layout: Layout, *, heads: int) -> Path:
    """A Llama with twice the neurons and channels of the stream, and key-value heads for each of `heads` query heads:
    twins write the same, and share what is read."""

    def change(name: str, tensor: Tensor) -> Tensor:
        made = tensor
        for dim, spaces in enumerate(layout.tensor(name).spaces):
            space, reads = spaces[0], dim == 1 and layout.tensor(name).role in ("projection", "head")
            if space.name in ("residual", "mlp"):
                made = made.repeat_interleave(2, dim) * (0.5 if reads else 1.0)
            elif space.name == "heads.kv":
                found = layout.heads[space.layer or 0]
                assert found is not None
                split = made.view(found.keys, found.channels, -1).repeat_interleave(heads // found.keys, 0)
                made = split.flatten(0, 1).view(-1, *made.shape[1:])
        return made

    rewritten(folder, out, change)
    hidden, neurons = (2 * next(s.size for s in _spaces(layout) if s.name == name) for name in ("residual", "mlp"))
    edit_config(out, hidden_size=hidden, intermediate_size=neurons, num_key_value_heads=heads)
    return out


def _spaces(layout: Layout):  # type: ignore[no-untyped-def]
    return (spaces[0] for tensor in layout.tensors for spaces in tensor.spaces)
