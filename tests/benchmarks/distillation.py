"""Distillation by byte events against the same work without: `python -m tests.benchmarks.distillation`.

A training step with the source's events in its loss against one of next-token loss alone (target: at most 1.25x), and
the teacher's pass with events against a bare forward pass of the source (at most 1.2x). Random Llama models of the
sizes given, with random nested vocabularies; runs are interleaved and CPU times of the process compared as medians of
ratios within a round. Fewer layers than a real model has make both ratios worse, not better.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tests.benchmarks.models import random_llama
from tests.benchmarks.ratio import Ratio, in_turns
from tmerge_tui.engine.data.vocabulary import Vocabulary, token_ends
from tmerge_tui.engine.training.boundaries import Pairing, pair
from tmerge_tui.engine.training.byte_events import event_loss, teach
from tmerge_tui.engine.training.event_cache import collate_events
from tmerge_tui.engine.training.event_space import EventSpace

WEIGHT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs=2, default=(49_152, 131_072), help="of target and source")
    parser.add_argument("--hidden", type=int, nargs=2, default=(576, 640), help="of target and source")
    parser.add_argument("--layers", type=int, nargs=2, default=(8, 8), help="of target and source")
    parser.add_argument("--batch", type=int, default=4, help="texts")
    parser.add_argument("--length", type=int, default=64, help="tokens of the target in a text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", action="store_true", help="positions inside the source's tokens too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    began = time.monotonic()
    target, source = (make_vocabulary(rows, seed) for seed, rows in enumerate(args.vocab))
    space = EventSpace.between(source, target)
    space.table(b"", torch.device("cpu"))
    print(f"vocabularies and their events: {time.monotonic() - began:.1f} s, once for a pair")

    rng = random.Random(0)
    texts = [[rng.randrange(args.vocab[0] // 4) for _ in range(args.length)] for _ in range(args.batch)]
    raw = [b"".join(target.spelled[i] or b"" for i in text) for text in texts]
    read = [longest_first(source, text) for text in raw]
    pairings = [
        pair(token_ends(source, theirs, text), token_ends(target, ours, text), text, args.every)
        for theirs, ours, text in zip(read, texts, raw, strict=True)
    ]
    width = max(map(len, read))
    source_ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in read])
    target_ids = torch.tensor(texts)
    student, teacher = (
        random_llama(*sizes, groups=1) for sizes in zip(args.hidden, args.layers, args.vocab, strict=True)
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    counted = torch.ones(target_ids.shape, dtype=torch.bool)
    counted[:, -1] = False
    events = taught(teacher, source_ids, pairings, space)
    parts = [[(i, 0)] for i in range(args.batch)]

    def step(distilled: bool) -> None:
        logits = student(input_ids=target_ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), target_ids[:, 1:].flatten())
        if distilled:
            batch = collate_events(events, parts, counted)
            loss = (1 - WEIGHT) * loss + WEIGHT * event_loss(logits, batch, space) / len(batch.rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def bare() -> None:
        teacher(input_ids=source_ids, use_cache=False)

    ways: dict[str, Callable[[], Any]] = {
        "SFT step": lambda: step(False),
        "with events": lambda: step(True),
        "source, forward": bare,
        "source, events": lambda: taught(teacher, source_ids, pairings, space),
    }
    seconds = in_turns(ways, args.rounds)
    positions = sum(len(text.places) for text in events)
    size = sum(array.nbytes for text in events for array in vars(text).values()) / positions
    print(f"{args.batch} x {args.length} tokens, {positions} positions with events, {size:.0f} bytes each")
    names = list(ways)
    for name in names:
        print(f"{name:<16} {statistics.median(seconds[name]):7.2f} s")
    print(Ratio.of("distillation step / SFT step", seconds[names[1]], seconds[names[0]], 1.25))
    print(Ratio.of("teacher's pass / bare forward", seconds[names[3]], seconds[names[2]], 1.2), flush=True)


@torch.no_grad()
def taught(teacher: Any, ids: torch.Tensor, pairings: list[Pairing], space: EventSpace) -> Any:
    return teach(teacher(input_ids=ids, use_cache=False).logits, pairings, space)


def make_vocabulary(rows: int, seed: int) -> Vocabulary:
    """Every byte, and tokens that two earlier ones make, as byte-pair encoding has them; one special token."""
    rng = random.Random(seed)
    tokens = [bytes([byte]) for byte in range(256)]
    letters = [bytes([byte]) for byte in b" etaoinshrdlucmfwypvbgkqjxz"]
    known, growing = set(tokens), letters[:]
    while len(tokens) < rows - 1:
        made = growing[int(len(growing) * rng.random() ** 2)] + rng.choice(letters)
        if len(made) <= 14 and made not in known:
            known.add(made)
            tokens.append(made)
            growing.append(made)
    return Vocabulary("random", (*tokens, None), {rows - 1: b"<end>"}, rows - 1, "")


def longest_first(vocabulary: Vocabulary, text: bytes) -> list[int]:
    """Tokens of a text, the longest that fits at each place."""
    rows = {spelled: row for row, spelled in enumerate(vocabulary.spelled) if spelled}
    ids, at = [], 0
    while at < len(text):
        length = next(n for n in range(14, 0, -1) if text[at : at + n] in rows and at + n <= len(text))
        ids.append(rows[text[at : at + length]])
        at += length
    return ids


if __name__ == "__main__":
    main()
