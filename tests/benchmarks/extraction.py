"""Extraction against a bare forward pass of the decoder over the same batches, without hooks.

    python -m tests.benchmarks.extraction [--rounds 7] [--threads 1] [--hidden 576] [--layers 8]

Both sides of every projection are recorded, once for each kind of pooling; runs are interleaved and CPU times of the
process compared as medians of ratios within a round. Target: 1.05x at most, hidden 576 and more. Tokenizing and writing
pieces are in the figure: with `span` on a model this small, most of the difference is writing one row of every side for
each word.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.benchmarks.models import random_llama
from tests.benchmarks.ratio import Ratio
from tests.tiny import LINES, make_tokenizer
from tmerge_tui.engine.activations.extract import extract
from tmerge_tui.engine.activations.pooling import encode, plan_rows
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.models.forward import LoadedModel, trunk
from tmerge_tui.models.projections import find_projections
from tmerge_tui.recipe import PROJECTIONS, Calibration
from tmerge_tui.run_folder import RunDir

SAMPLES, LENGTH, BATCH = 32, 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=576, help="width: the wider, the smaller the share of pooling")
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = random_llama(args.hidden, args.layers, 320).eval()
    layout = find_projections(model, model.config, model.state_dict())
    facts: Any = SimpleNamespace(label="bench", name="random llama", fingerprint="random", layout=layout)
    words = " ".join(LINES).split()
    samples = [Sample(text=" ".join(words[i : i + 60])) for i in range(SAMPLES)]
    subject = LoadedModel("target", facts, tokenizer, lambda: model, torch.device("cpu"), torch.float32)
    ids = torch.tensor([e.ids for e in encode(samples, tokenizer, LENGTH, "sample", "auto")])

    @torch.no_grad()
    def bare(_: Path) -> None:
        for batch in ids.split(BATCH):
            trunk(model)(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False)

    def extracted(pooling: Any) -> Callable[[Path], None]:
        calibration = Calibration(path="unused", max_length=LENGTH, batch_size=BATCH, pooling=pooling)
        rows = plan_rows(samples, [tokenizer], LENGTH, pooling, "auto")

        def run(folder: Path) -> None:
            extract(subject, samples, rows, PROJECTIONS, calibration, RunDir.create(folder), lambda _: None)

        print(f"{pooling}: {rows.count} rows of {SAMPLES} samples of {LENGTH} tokens")
        return run

    ways = {"bare": bare, "sample": extracted("sample"), "span": extracted("span")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.process_time()
                way(Path(folder))
                spent = time.process_time() - start
            if turn:  # the first round warms up
                seconds[name].append(spent)
    assert ids.shape == (SAMPLES, LENGTH)
    print(f"bare forward: {statistics.median(seconds['bare']):.3f} s CPU, {args.threads} thread(s)")
    for name in ("sample", "span"):
        print(Ratio.of(f"extraction, {name} pooling / bare forward", seconds[name], seconds["bare"], 1.05), flush=True)


if __name__ == "__main__":
    main()
