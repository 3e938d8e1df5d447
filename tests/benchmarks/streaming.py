"""Peak memory and time of a model larger than its memory budget, streamed from its own files, against one in memory.

    python -m tests.benchmarks.streaming

A decoder of 48 layers, 16.8 MB each in float32 (0.82 GB in all), is read with a budget of 150 MB. Each way runs in a
process of its own; memory is what the process allocates beyond the imports (anonymous pages, at their peak) and, beside
it, the peak with file pages, which the system takes back when it needs them. Logits must be equal to the last bit.
Target: what is allocated stays within 1.3x of the budget.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from tests.benchmarks.ratio import Ratio

BUDGET = 150_000_000
PASSES = 3


class Peak:
    """Highest anonymous and total resident bytes while the block runs, above those at its start."""

    def __enter__(self) -> Peak:
        self.process, self.running, self.anonymous, self.total = psutil.Process(), True, 0, 0
        self.base = self._now()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _now(self) -> tuple[int, int]:
        memory = self.process.memory_info()
        return memory.rss - memory.shared, memory.rss

    def _watch(self) -> None:
        while self.running:
            anonymous, total = self._now()
            self.anonymous = max(self.anonymous, anonymous - self.base[0])
            self.total = max(self.total, total - self.base[1])
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


def child(folder: str, budget: int) -> None:
    from tmerge_tui.models.facts import read_facts
    from tmerge_tui.models.loading import load_model

    torch.set_num_threads(2)
    facts = read_facts(Path(folder), "model")
    ids = torch.arange(64)[None]
    with Peak() as peak, torch.no_grad():
        model = load_model(facts, torch.device("cpu"), torch.float32, budget, lambda event: None)
        times = []
        for _ in range(PASSES):
            start = time.perf_counter()
            logits = model(ids, use_cache=False).logits
            times.append(time.perf_counter() - start)
    result = {
        "weights": facts.weight_bytes(torch.float32),
        "anonymous": peak.anonymous,
        "total": peak.total,
        "seconds": sorted(times)[PASSES // 2],
        "logits": logits.double().sum().item(),
        "bits": logits.view(torch.int32).double().abs().sum().item(),
    }
    print(json.dumps(result))


def make(folder: str, dtype: str) -> None:
    from tests.tiny import make_model

    make_model(
        Path(folder),
        hidden=512,
        intermediate=2048,
        heads=8,
        kv_heads=8,
        layers=48,
        max_shard_size="100MB",
        dtype=getattr(torch, dtype),
    )


def main() -> None:
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as root:
            run(["make", f"{root}/model", dtype])
            whole, streamed = (json.loads(run(["child", f"{root}/model", str(b)])) for b in (10**12, BUDGET))
        assert whole["bits"] == streamed["bits"], "streamed logits differ"
        print(f"{dtype} files, float32 passes, weights {whole['weights'] / 1e6:.0f} MB, budget {BUDGET / 1e6:.0f} MB")
        for name, result in (("in memory", whole), ("streamed", streamed)):
            print(
                f"  {name:10} peak {result['anonymous'] / 1e6:6.0f} MB allocated, {result['total'] / 1e6:6.0f} MB with "
                f"file pages; {result['seconds'] * 1e3:6.0f} ms a pass of 64 tokens"
            )
        peak = streamed["anonymous"] / BUDGET
        print(Ratio(f"streamed from {dtype}: peak / budget", peak, peak, peak, 1.3), flush=True)


def run(arguments: list[str]) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.streaming", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["child", folder, budget]:
            child(folder, int(budget))
        case ["make", folder, dtype]:
            make(folder, dtype)
        case _:
            main()
