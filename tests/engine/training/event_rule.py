"""Byte events and their loss as the rule says it: Python's dictionaries, fp64, one token at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import LINES, make_tokenizer
from tmerge_tui.engine.data.vocabulary import Vocabulary, read_vocabulary, token_ends
from tmerge_tui.engine.training.boundaries import Pairing, pair
from tmerge_tui.engine.training.byte_events import event_loss
from tmerge_tui.engine.training.event_cache import Events, collate_events
from tmerge_tui.engine.training.event_space import EventSpace

END, SPECIAL, REST = "end of text", "special", "rest"
Key = bytes | str


def vocabulary(*spelled: bytes | None, special: tuple[int, ...] = (), end: int | None = None) -> Vocabulary:
    return Vocabulary("v", spelled, {row: b"<%d>" % row for row in special}, end, "")


def key_of(row: int, mine: Vocabulary, other: Vocabulary) -> Key:
    """What a token is before events are looked for."""
    if row in mine.special:
        if row == mine.end and other.end is not None:
            return END
        return SPECIAL if set(other.special) - ({other.end} if mine.end is not None else set()) else REST
    return mine.spelled[row] or REST


def longest(start: Key, among: Any) -> Key:
    if isinstance(start, str):
        return start if start in among else REST
    return next((start[:n] for n in range(len(start), 0, -1) if start[:n] in among), REST)


def naive(p: list[float], behind: bytes, source: Vocabulary, target: Vocabulary, k: int) -> dict[Key, float] | None:
    """P of the k chosen events and the rest; None when nothing is longer than `behind`."""
    tokens = {key_of(row, target, source) for row in range(target.rows)} - {REST}
    own: Counter[Key] = Counter()
    for row, mass in enumerate(p):
        key = key_of(row, source, target)
        if behind:
            if isinstance(key, str) or not key.startswith(behind) or key == behind:
                continue
            key = key[len(behind) :]
        own[longest(key, tokens)] += mass
    own.pop(REST, None)  # what the target cannot say
    if not own:
        return None
    chosen = sorted(own, key=lambda key: -own[key])[:k]
    found: dict[Key, float] = dict.fromkeys([*chosen, REST], 0.0)
    for key, mass in own.items():
        found[longest(key, chosen)] += mass / sum(own.values())
    return found


def naive_classes(chosen: list[Key], source: Vocabulary, target: Vocabulary) -> list[int]:
    """Of every target row, its class; the last one is the rest."""
    keys = (longest(key_of(row, target, source), chosen) for row in range(target.rows))
    return [len(chosen) if key == REST else chosen.index(key) for key in keys]


def naive_loss(logits: Tensor, told: dict[Key, float], source: Vocabulary, target: Vocabulary) -> Tensor:
    chosen = [key for key in told if key != REST]
    q = logits.double().softmax(-1)
    classes = torch.tensor(naive_classes(chosen, source, target))
    sums = q.new_zeros(len(chosen) + 1).index_add(0, classes, q)
    p = q.new_tensor([told[key] for key in chosen] + [told[REST]])
    there = p > 0
    return (p[there] * (p[there].log() - sums[there].log())).sum()


def named(events: Events, i: int, source: Vocabulary, target: Vocabulary) -> dict[Key, float]:
    part = slice(events.offsets[i], events.offsets[i + 1])
    keys = [key_of(int(row), target, source) for row in events.ids[part]]
    return dict(zip(keys, events.masses[part].tolist(), strict=True)) | {REST: float(events.rest[i])}


def one_position(behind: bytes = b"") -> Pairing:
    return Pairing(np.zeros(1, np.int32), np.zeros(1, np.int32), (behind,))


def loss_of(logits: Tensor, texts: list[Events], space: EventSpace) -> Tensor:
    """Texts of one block each; logits [B, T, V]."""
    parts = [[(i, 0)] for i in range(len(texts))]
    return event_loss(logits, collate_events(texts, parts, torch.ones(logits.shape[:2], dtype=torch.bool)), space)


def kl(said: Tensor, logits: Tensor) -> Tensor:
    """Of next-token distributions, summed over positions, fp64."""
    q, p = logits.double().log_softmax(-1), said.double().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


class Pair:
    """Two byte-level tokenizers on real text; random logits; BOS is on the target's side alone; pad is end of text."""

    def __init__(self, every: bool) -> None:
        self.theirs, self.ours = make_tokenizer(340), make_tokenizer(300)
        self.source, self.target = read_vocabulary(self.theirs, 352), read_vocabulary(self.ours, 310)
        self.space = EventSpace.between(self.source, self.target)
        self.texts = [*LINES[:3], "é中 and a héron"]
        self.ids = [self.ours("<|end|>" + text).input_ids for text in self.texts]
        self.pairings = []
        width = 0
        for text, ours in zip(self.texts, self.ids, strict=True):
            theirs = self.theirs(text).input_ids
            raw = text.encode()
            ends = token_ends(self.source, theirs, raw), token_ends(self.target, ours, raw)
            self.pairings.append(pair(*ends, raw, every))
            width = max(width, len(theirs))
        generator = torch.Generator().manual_seed(3)
        self.said = 3 * torch.randn(len(self.texts), width, 352, generator=generator)
        self.logits = 3 * torch.randn(len(self.texts), max(map(len, self.ids)), 310, generator=generator)
