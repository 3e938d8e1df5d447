"""Held-out scores against a bare forward pass of the same batches: `python -m tests.benchmarks.scoring`.

    [--rounds 5] [--threads 1] [--hidden 576] [--layers 30] [--vocab 49152] [--texts 32]

The bare pass reads the same batches to logits and takes no loss. Targets: bits per byte at most 1.05x of it, tokenizing
and all; of 400 texts of all lengths less than 5 % of what is read is padding.
"""

from __future__ import annotations

import argparse
import random

import torch

from tests.benchmarks.models import random_llama
from tests.benchmarks.ratio import Ratio, in_turns
from tests.tiny import LINES, make_tokenizer
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import score, text_of
from tmerge_tui.models.forward import Batches, padded

LENGTH, BATCH = 256, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--texts", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = random_llama(args.hidden, args.layers, args.vocab).eval()
    rng = random.Random(0)
    words = " ".join(LINES).split()
    every = [Sample(text=" ".join(rng.choices(words, k=rng.randint(4, 60)))) for _ in range(max(400, args.texts))]
    samples = every[: args.texts]
    read = [text_of(sample.plain, tokenizer, LENGTH).ids for sample in every]

    def batched(texts: int) -> list[list[int]]:
        lengths = {i: len(ids) for i, ids in enumerate(read[:texts])}
        return [list(b) for b, _ in Batches("bare", BATCH, model.device, print).run(lengths, lambda batch: None)]

    batches = batched(args.texts)

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            ids, mask = padded([read[i] for i in batch])
            model(input_ids=ids, attention_mask=mask, use_cache=False)

    seconds = in_turns({"bare": bare, "ours": lambda: score(model, tokenizer, samples, BATCH, LENGTH)}, args.rounds)
    whole = sum(len(batch) * len(read[batch[0]]) for batch in batched(len(every)))
    padding = 1 - sum(map(len, read)) / whole
    print(f"{len(batches)} batches of {args.texts} texts")
    print(Ratio.of("scoring / bare forward", seconds["ours"], seconds["bare"], 1.05))
    print(Ratio("padding of held-out texts, share", padding, padding, padding, 0.05), flush=True)


if __name__ == "__main__":
    main()
