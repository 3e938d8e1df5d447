"""How fast this machine is at what a run does, measured in a second, and the time that an estimate takes here.

Matrix products are measured in the shapes of the two models, since small ones are many times slower than large ones;
passes over a kernel in the size of a plan. What no speed shortens (starting, loading, a step of Python) is counted in
steps, at the cost that the demo's recorded run has. Where `tmerge scout` has run both models, its seconds are taken.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tmerge_tui.engine.preflight.scouted import Pace
from tmerge_tui.engine.prepared import Estimate
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.pair import Pair

PATIENCE = 0.25  # seconds for each measurement
TOKENS = 2048  # in one product at most
SIDE = 2048  # of a kernel at most
SHARE = 0.65  # of a product's speed that a whole forward pass reaches: attention, norms, softmax
START = 8.0  # seconds until the worker has its libraries
PER_BATCH, PER_PAIR, PER_LOAD = 0.035, 0.004, 0.4  # seconds of Python and of loading


@dataclass(frozen=True)
class Speed:
    source: float  # FLOP a second in products of the source's shapes
    target: float
    memory: float  # bytes a second


def timed(
    needs: Estimate,
    source: ModelFacts,
    target: ModelFacts,
    tokens: int,
    device: torch.device,
    scouted: Pair[Pace] | None = None,  # what both models were seen to take; then products are not asked
) -> Estimate:
    """`needs` with the time it takes on `device`; `tokens` is what one batch holds.

    As scouted, a pass costs what it was seen to cost, Python included; transport stays priced by products.
    """
    speed = measure(_shapes(source), _shapes(target), TOKENS if scouted else min(tokens, TOKENS), str(device))
    by_products = 1 / (SHARE * speed.target)
    ours, theirs = by_products, 1 / (SHARE * speed.source)  # seconds for a FLOP of a forward pass
    price: dict[str, float] = {}  # where it is not that of a pass of the target
    costs = {"batches": PER_BATCH, "pairs": PER_PAIR, "loads": PER_LOAD}
    if scouted is not None:
        ours, theirs = scouted.target.flop / target.parameters, scouted.source.flop / source.parameters
        learning = scouted.target.learning_flop / target.parameters
        price = {"transport": by_products, "training": learning, "teaching": theirs}
        del costs["batches"]
    of_source = source.parameters / (source.parameters + target.parameters)
    price["reading"] = of_source * theirs + (1 - of_source) * ours
    seconds = sum(flops * price.get(name, ours) for name, flops in needs.work.items())
    seconds += needs.touched / speed.memory + START
    seconds += sum(cost * needs.steps.get(name, 0.0) for name, cost in costs.items())
    return replace(needs, seconds=seconds, scouted=scouted is not None)


@functools.lru_cache(maxsize=8)
def measure(
    source: tuple[tuple[int, int], ...], target: tuple[tuple[int, int], ...], tokens: int, device: str
) -> Speed:
    """One look at this machine for a pair of models and a batch; kept, since it takes a second."""
    return Speed(_products(source, tokens, device), _products(target, tokens, device), _bandwidth(device))


def _shapes(facts: ModelFacts) -> tuple[tuple[int, int], ...]:
    """[out, in] of the first layer's projections."""
    return tuple((p.d_out, p.d_in) for p in facts.layout.projections if p.layer == 0)


def _products(shapes: tuple[tuple[int, int], ...], tokens: int, device: str) -> float:
    weights = [torch.randn(shape, device=device) for shape in shapes]
    inputs = {shape[1]: torch.randn(tokens, shape[1], device=device) for shape in shapes}
    work = sum(2.0 * tokens * d_out * d_in for d_out, d_in in shapes)

    def once() -> None:
        for weight in weights:
            inputs[weight.shape[1]] @ weight.T

    return work / _best(once, device)


def _bandwidth(device: str) -> float:
    kernel = torch.rand(SIDE, SIDE, device=device)
    vector = torch.rand(SIDE, device=device)
    return 4.0 * SIDE * SIDE / _best(lambda: kernel @ vector, device)


def _best(once: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of a few rounds, the first of which only warms up."""
    cuda = device.startswith("cuda")
    best, end = float("inf"), time.perf_counter() + PATIENCE
    for number in range(64):
        start = time.perf_counter()
        once()
        if cuda:
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - start)
        if number and time.perf_counter() > end:
            break
    return best
