"""Distillation across tokenizers by byte events: what the source says of the next bytes, and the loss against it.

At a position the source's distribution becomes masses of events (`EventSpace`): the K events with most mass of their
own, each without what the chosen ones inside it have, and one class for the rest. The student's tokens are summed into
the same classes, and the loss is

    KL(P || Q) = sum_w P(w) log (P(w) / Q(w))        in nats, over K events and the rest

with gradient q_j - P(w_j) q_j / Q(w_j) for the logit of a token j in class w_j: tokens that the source does not have
are moved with their class. With one tokenizer and K = V it is the KL of next-token distributions.

Sums are taken in fp32 over ranges of non-negative numbers, never as differences, so that small masses keep their
digits; positions go through in chunks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmerge_tui.engine.training.boundaries import Pairing
from tmerge_tui.engine.training.event_cache import BatchEvents, Events
from tmerge_tui.engine.training.event_space import EventSpace, Table

EVENTS = 64  # K: with 24, a tenth of a small source's mass is in the rest
NOTHING = 1e-32  # of a position's largest token: an event below it costs 74 nats and has no gradient of its own
LEAST = 1e-6  # of the source's mass that the target has to have tokens for


@torch.no_grad()
def teach(logits: Tensor, pairings: Sequence[Pairing], space: EventSpace, events: int = EVENTS) -> list[Events]:
    """What the source says at the positions of each text; logits [B, T, V of the source], one pairing a row.

    What the target has no token for is left out of the masses, and positions at which that is all: no token of the
    source is longer than what was read beyond it, or none of them starts with a token of the target.
    """
    assert logits.shape[-1] == space.source_rows, "the events are of another head"
    text = np.repeat(np.arange(len(pairings)), [len(p.ours) for p in pairings])
    theirs = np.concatenate([p.theirs for p in pairings])
    ours = np.concatenate([p.ours for p in pairings])
    by_context: dict[bytes, list[int]] = defaultdict(list)
    for i, behind in enumerate(each for p in pairings for each in p.behind):
        by_context[behind].append(i)
    ids = np.full((len(ours), events), -1, np.int32)
    masses = np.zeros((len(ours), events + 1), np.float32)
    told = np.zeros(len(ours), bool)
    for behind, members in by_context.items():
        table = space.table(behind, logits.device)
        if not len(table.ranks):
            continue
        k = min(events, len(table.ranks))
        width = logits.shape[-1] if table.tokens is None else len(table.tokens)
        for part in _chunks(len(members), width, k, logits.device):
            at = members[part]
            said = logits[torch.from_numpy(text[at]), torch.from_numpy(theirs[at]).long()]
            if table.tokens is not None:
                said = said[:, table.tokens]
            ranks, found = select(_events_of(said.float().softmax(-1), table.slots, len(table.ranks)), table, k)
            whole = found.sum(1, keepdim=True)
            ids[at, :k], told[at] = space.row(ranks).cpu().numpy(), (whole[:, 0] > LEAST).cpu().numpy()
            shares = (found / whole).cpu().numpy()
            masses[at, :k], masses[at, -1] = shares[:, :-1], shares[:, -1]
    return [_packed(*(each[told & (text == i)] for each in (ours, ids, masses))) for i in range(len(pairings))]


def _events_of(mass: Tensor, slots: Tensor | None, count: int) -> Tensor:
    """Mass of tokens [n, R] -> of the events they go to [n, at least count]; nothing behind those."""
    if slots is not None:
        mass = mass.new_zeros(len(mass), count + 1).scatter_add_(1, slots.expand(len(mass), -1), mass)
    mass[:, count:] = 0
    return mass


def select(mass: Tensor, table: Table, k: int) -> tuple[Tensor, Tensor]:
    """The k events with most mass of their own: (their ranks [n, k], ascending; their masses and the rest [n, k + 1]).

    mass [n, C or more]: of the table's events. What an event that is not chosen has goes to the smallest chosen one
    around it, or to the rest.
    """
    chosen = mass[:, : len(table.ranks)].topk(k, sorted=False).indices.sort().values
    sums = _sums(mass, *_classes(chosen, table.ends[chosen], mass.shape[1]))
    return table.ranks[chosen], sums


def _packed(ours: Any, ids: Any, masses: Any) -> Events:
    there = ids >= 0
    offsets = np.concatenate([[0], there.sum(1).cumsum()]).astype(np.int32)
    return Events(ours, offsets, ids[there], masses[:, :-1][there], masses[:, -1].copy())


def _classes(lo: Tensor, hi: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    """Events [lo, hi) [n, K] with lo ascending, nested or disjoint -> the axis cut into S = 2 K + 1 ranges, some empty:
    (their lengths [n, S], whose they are [n, S], K + 1). K is the rest.

    A range belongs to the innermost event around it: to the one that begins at its left end, or else to the event
    around those that end there. Of cuts at one place only the last has a length: that is a beginning, or the end of the
    outermost.
    """
    n, k = lo.shape
    zero = lo.new_zeros(n, 1)
    number = torch.arange(k, device=lo.device).expand(n, k)
    cuts, at = torch.cat([zero, hi.flip(1), lo], 1).sort(stable=True)
    lengths = torch.cat([cuts, zero + size], 1).diff()
    owner = torch.cat([zero + k, _around(lo, hi, size).flip(1), number], 1)
    return lengths, owner.gather(1, at), k + 1


def _around(lo: Tensor, hi: Tensor, size: int) -> Tensor:
    """The smallest event around each [n, K], K where there is none.

    Each starts with the one before it; as long as that has ended, what is around that one is tried, for all at once:
    the way doubles each time.
    """
    n, k = lo.shape
    everything = lo.new_full((n, 1), size + 1)
    begins, ends = torch.cat([0 * everything - 1, lo], 1), torch.cat([everything, hi], 1)
    around = torch.arange(-1, k, device=lo.device).clamp_min(0).expand(n, k + 1)  # 0 is everything
    while bool((ended := ends.gather(1, around) <= begins).any()):
        around = torch.where(ended, around.gather(1, around), around)
    return (around[:, 1:] - 1).remainder(k + 1)


def _sums(mass: Tensor, lengths: Tensor, owner: Tensor, count: int) -> Tensor:
    """mass [n, size] -> of every class [n, K + 1]."""
    pieces = torch.segment_reduce(mass.flatten(), "sum", lengths=lengths.flatten(), axis=0, unsafe=True, initial=0)
    return mass.new_zeros(len(mass), count).scatter_add_(1, owner, pieces.view_as(owner))


def event_loss(logits: Tensor, batch: BatchEvents, space: EventSpace) -> Tensor:
    """Sum over positions of KL(P || Q), fp32 []; logits [B, T, V] are the student's, `space` is on their device."""
    assert logits.shape[-1] == space.rows, "the events are of another head"
    return _EventLoss.apply(logits, batch, space)


class _EventLoss(torch.autograd.Function):
    """Takes the gradient on the way forward, when the classes are at hand; what is kept is as large as the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, batch: BatchEvents, space: EventSpace) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits) if wanted else None
        total = torch.zeros((), device=logits.device)
        for part in _chunks(len(batch.rows), logits.shape[-1], batch.ids.shape[1], logits.device):
            rows, columns = batch.rows[part], batch.columns[part]
            said = logits[rows, columns].float()
            if space.order is not None:
                said = said.index_select(1, space.order)
            power = said.sub_(said.amax(1, keepdim=True)).exp_()
            lo, hi = space.ranges(batch.ids[part])
            lengths, owner, count = _classes(lo, hi, power.shape[1])
            sums = _sums(power, lengths, owner, count).clamp_min_(NOTHING)
            whole = sums.sum(1, keepdim=True)
            told = batch.masses[part]
            total += (torch.xlogy(told, told) - told * (sums / whole).log()).sum()
            if gradient is not None:
                factor = (told.sum(1, keepdim=True) / whole - told / sums).gather(1, owner)
                each = torch.repeat_interleave(factor.flatten(), lengths.flatten(), output_size=power.numel())
                power *= each.view_as(power)
                if space.order is not None:
                    power = power.index_select(1, space.rank)
                gradient[rows, columns] = power.to(gradient.dtype)
        ctx.save_for_backward(*(() if gradient is None else (gradient,)))
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(above[0]), None, None  # in place: a second backward pass is refused by torch


def _chunks(positions: int, width: int, events: int, device: torch.device) -> list[slice]:
    """As many positions at a time as keep scratch tensors small: of `width` columns, and of ranges."""
    at_once = 1 << (22 if device.type == "cpu" else 25)
    step = max(1, at_once // max(width, 4 * events))
    return [slice(start, start + step) for start in range(0, positions, step)]
