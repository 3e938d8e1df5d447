"""Fusion of the kept layers and selected rows against the dense product: `python -m tests.benchmarks.fusion`.

One projection of one target layer, at the shapes of an 8B source and a 1B target scaled down: all source layers and all
rows (eq. 14 taken literally) against the three kept layers and 128 rows or columns (A.1, A.5). Both get the same plans,
already in memory. CPU seconds, medians of interleaved runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.ratio import Ratio
from tmerge_tui.engine.methods.transport_merge.fuse import carry

TARGET_RATIO = 8
RUNS = 7
SHAPES = {  # kind: target d_out, d_in, source d_out, d_in
    "q": (1024, 1024, 2048, 2048),
    "o": (1024, 1024, 2048, 2048),
    "up": (2048, 1024, 4096, 2048),
    "down": (1024, 2048, 2048, 4096),
}
LAYERS, KEPT, K = 8, 3, 128


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(kind: str) -> tuple[float, float]:
    """Median CPU seconds of (dense, selected)."""
    d_out, d_in, s_out, s_in = SHAPES[kind]
    generator = torch.Generator().manual_seed(0)
    P = torch.rand(LAYERS, generator=generator)
    Phi_out, Phi_in = torch.rand(d_out, s_out, generator=generator), torch.rand(s_in, d_in, generator=generator)
    W = torch.randn(s_out, s_in, generator=generator)
    index = torch.randperm(d_out if kind in ("q", "up") else d_in, generator=generator)[:K].sort().values
    top = P.topk(KEPT).indices

    def dense() -> Tensor:
        return sum((P[m] * (Phi_out @ W @ Phi_in) for m in range(LAYERS)), torch.zeros(d_out, d_in))

    def selected() -> Tensor:
        if kind in ("q", "up"):
            return sum((P[m] * carry(Phi_out[index], W, Phi_in) for m in top), torch.zeros(K, d_in))
        return sum((P[m] * carry(Phi_out, W, Phi_in[:, index]) for m in top), torch.zeros(d_out, K))

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for seconds, work in zip(times, (dense, selected), strict=True):
            seconds.append(cpu_seconds(work))
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])  # the first run warms up


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{LAYERS} source layers, {KEPT} kept, {K} neurons selected; median CPU seconds of {RUNS - 1} interleaved runs"
    )
    worst = float("inf")
    for kind in SHAPES:
        dense, selected = compare(kind)
        worst = min(worst, dense / selected)
        print(f"{kind:5} dense {dense:.3f}  selected {selected:.4f}  ratio {dense / selected:.1f}x")
    print(Ratio("fusion: dense / selected, smallest", worst, worst, worst, TARGET_RATIO, at_least=True), flush=True)


if __name__ == "__main__":
    main()
