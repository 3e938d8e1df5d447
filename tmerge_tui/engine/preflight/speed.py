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
    """`needs` with the time it takes on `device`; `tokens` is what one batch holds."""
    if scouted is not None:
        return _as_scouted(needs, source, target, scouted, device)
    speed = measure(_shapes(source), _shapes(target), min(tokens, TOKENS), str(device))
    reading = needs.work.get("reading", 0.0)
    of_source = source.parameters / (source.parameters + target.parameters)
    seconds = SHARE**-1 * (
        reading * of_source / speed.source
        + (sum(needs.work.values()) - reading * of_source) / speed.target
    )  # fmt: skip
    seconds += needs.touched / speed.memory + START
    costs = {"batches": PER_BATCH, "pairs": PER_PAIR, "loads": PER_LOAD}
    seconds += sum(cost * needs.steps.get(name, 0.0) for name, cost in costs.items())
    return replace(needs, seconds=seconds)


def _as_scouted(
    needs: Estimate, source: ModelFacts, target: ModelFacts, pace: Pair[Pace], device: torch.device
) -> Estimate:
    """A pass costs what it was seen to cost, Python included; transport is priced by products and the kernel."""
    ours, theirs = pace.target.flop / target.parameters, pace.source.flop / source.parameters
    speed = measure(_shapes(source), _shapes(target), TOKENS, str(device))
    price = {
        "transport": 1 / (SHARE * speed.target),
        "training": pace.target.learning_flop / target.parameters,
        "teaching": theirs,
    }
    work = dict(needs.work)
    reading = work.pop("reading", 0.0)
    of_source = source.parameters / (source.parameters + target.parameters)
    seconds = reading * (of_source * theirs + (1 - of_source) * ours)
    seconds += sum(flops * price.get(name, ours) for name, flops in work.items())
    seconds += needs.touched / speed.memory + START
    seconds += sum(cost * needs.steps.get(name, 0.0) for name, cost in (("pairs", PER_PAIR), ("loads", PER_LOAD)))
    return replace(needs, seconds=seconds, scouted=True)


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
