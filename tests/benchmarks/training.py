"""A training step against that of a bare PyTorch loop: `python -m tests.benchmarks.training`.

    [--rounds 3] [--threads 1] [--hidden 576] [--layers 4] [--vocab 49152] [--steps 4]

Ours is what stage "adapt" runs, transformers' Trainer with loss, clipping, schedule and reports; the bare loop has the
same model, batches, AdamW and clipping, and nothing else. Each trains once for N steps and once for 3 N, and what is
compared is the difference: start, end and the one checkpoint are in both. Target: at most 1.10x.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tests.benchmarks.models import random_llama
from tests.benchmarks.ratio import Ratio, in_turns
from tmerge_tui.engine.training.examples import Block, collate
from tmerge_tui.engine.training.trainer import train
from tmerge_tui.recipe.adaptation import Adaptation

BATCH, LENGTH, RATE = 4, 64, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = random_llama(args.hidden, args.layers, args.vocab)
    start = copy.deepcopy(model.state_dict())
    rng = random.Random(0)
    texts = [tuple(rng.randrange(args.vocab) for _ in range(LENGTH)) for _ in range(BATCH * args.steps * 3)]
    blocks = [Block(ids, ids, ((i, 0),)) for i, ids in enumerate(texts)]
    common = Adaptation(
        batch_size=BATCH,
        accumulation=1,
        learning_rate=RATE,
        packing="pad",
        block_length=LENGTH,
        checkpoints=1,
        bf16=False,
    )
    told: list[Any] = []

    def ours(steps: int) -> None:
        options = common.model_copy(update={"max_steps": steps})
        model.load_state_dict(start)
        with tempfile.TemporaryDirectory() as folder:
            train(
                model,
                blocks[: BATCH * steps],
                [],
                options,
                0,
                [],
                Path(folder),
                torch.device("cpu"),
                told.append,
                print,
            )

    def bare(steps: int) -> None:
        model.load_state_dict(start)
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=common.weight_decay)
        for at in range(0, BATCH * steps, BATCH):
            batch = collate(blocks[at : at + BATCH])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), common.max_norm)
            optimiser.step()
            optimiser.zero_grad()

    short, long = args.steps, 3 * args.steps
    ways = {(way.__name__, steps): partial(way, steps) for way in (bare, ours) for steps in (short, long)}
    seconds = in_turns(ways, args.rounds)
    assert told and told[-1].step == long
    steps = {
        name: [b - a for a, b in zip(seconds[name, short], seconds[name, long], strict=True)]
        for name in ("ours", "bare")
    }
    print(f"{long - short} steps of {BATCH} x {LENGTH} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M")
    print(Ratio.of("training step / bare loop", steps["ours"], steps["bare"], 1.10), flush=True)


if __name__ == "__main__":
    main()
