"""The transport stage against other ways to the same plans: `python -m tests.benchmarks.transport [--quick]`.

Methods take turns in one process on one thread; figures are medians of CPU time, because other work shares the machine.

    ours        the solver of the stage with its default tolerance, products included
    floor       the correlation products alone
    log 200     log-domain streaming Sinkhorn in fp32, 200 iterations, on a stored cost
    log stop    the same, ended by L1 < 1e-6 or by a change of L1 below 1e-7
    POT         ot.sinkhorn, torch backend, 200 iterations

The log-domain way is written from its description (PERFORMANCE of the design notes): z-scores and cost anew for every
pair, plan written out, and q, k and v solved each with an input that they share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import ot
import torch
from torch import Tensor

from tests.benchmarks.ratio import Ratio
from tests.engine.optimal_transport.problems import make_pair
from tmerge_tui.engine.optimal_transport.cost import CorrelationCosts, zscore
from tmerge_tui.engine.optimal_transport.sinkhorn import plan, solve_fast
from tmerge_tui.engine.optimal_transport.stopping import Stopping

SOURCES = {512: 16, 2048: 4}  # source layers in one call, by width of the target


def streaming(X: Tensor, Y: Tensor, epsilon: float, stop: bool, block: int = 1024) -> Tensor:
    """The baseline: Q from raw activations in fp32, log-sum-exp over blocks of rows."""
    Zx, Zy = ((A - A.mean(0)) / (A.std(0) + 1e-8) for A in (X, Y))
    C = 1 - (Zx.T @ Zy) / (len(X) - 1)
    n, m = C.shape
    log_a, log_b = -torch.log(torch.tensor(float(n))), -torch.log(torch.tensor(float(m)))
    f, g = torch.zeros(n), torch.zeros(m)
    before = float("inf")
    for _ in range(200):
        row = torch.cat([torch.logsumexp(-part / epsilon + g, 1) for part in C.split(block)])
        f = log_a - row
        parts = [
            torch.logsumexp(-c / epsilon + h[:, None], 0) for c, h in zip(C.split(block), f.split(block), strict=True)
        ]
        column = torch.logsumexp(torch.stack(parts), 0)
        if stop:
            error = float((torch.exp(g + column) - torch.exp(log_b)).abs().sum())
            if error < 1e-6 or abs(error - before) < 1e-7:
                break
            before = error
        g = log_b - column
    return torch.exp(f[:, None] + g - C / epsilon)


def pot(X: Tensor, Y: Tensor, epsilon: float) -> Tensor:
    C = 1 - zscore(X).T @ zscore(Y)
    a, b = torch.full((C.shape[0],), 1 / C.shape[0]), torch.full((C.shape[1],), 1 / C.shape[1])
    return ot.sinkhorn(a, b, C, epsilon, method="sinkhorn", numItermax=200, stopThr=0, warn=False)


def clock(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(n: int, m: int, T: int, epsilon: float, repeats: int, slow: int) -> dict[str, float]:
    """Median CPU seconds for one pair of each method, and our accuracy."""
    pairs = [make_pair(T, n, m, rank=48, noise=0.2 + 0.05 * s, seed=7) for s in range(SOURCES[n])]
    X, Ys = pairs[0][0], [Y for _, Y in pairs]
    Zx, Zys = zscore(X), [zscore(Y) for Y in Ys]
    rho = torch.empty(n, m)
    ways: dict[str, Callable[[], object]] = {
        "floor": lambda: [torch.mm(Zx.T, Zy, out=rho) for Zy in Zys],
        "ours": lambda: solve_fast(CorrelationCosts(Zx, Zys), epsilon),
        "POT": lambda: pot(X, Ys[0], epsilon),
        "log stop": lambda: streaming(X, Ys[0], epsilon, stop=True),
        "log 200": lambda: streaming(X, Ys[0], epsilon, stop=False),
    }
    counts = {"floor": repeats, "ours": repeats, "POT": slow, "log stop": slow, "log 200": max(1, slow // 2)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    ways["floor"](), ways["ours"]()
    for turn in range(repeats):
        for name, work in ways.items():
            if turn < counts[name]:
                times[name].append(clock(work))
    found = {name: statistics.median(t) / (SOURCES[n] if name in ("floor", "ours") else 1) for name, t in times.items()}
    ratios = [ours / floor for ours, floor in zip(times["ours"], times["floor"], strict=True)]
    found["ours/floor"] = statistics.median(ratios)
    costs = CorrelationCosts(Zx, Zys[:1])
    solution = solve_fast(costs, epsilon)[0]
    exact = solve_fast(costs, epsilon, Stopping(5000, 1e-12))[0]
    assert exact.converged
    S = Zx.double().T @ Zys[0].double() / epsilon
    expected = torch.exp(S + (exact.f + exact.shift - 1 / epsilon)[:, None] + exact.g)
    Q = plan(costs, epsilon, solution).double()
    found["accuracy"] = float((Q - expected).abs().max() / expected.max())
    found["L1"] = max(float((Q.sum(1) - 1 / n).abs().sum()), float((Q.sum(0) - 1 / m).abs().sum()))
    found["iterations"] = solution.iterations
    found["bytes"] = 4 * n * m / (solution.f.nbytes + solution.g.nbytes + 8)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems only, few repeats")
    parser.add_argument("--samples", type=int, default=512, help="T")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(512, 1024, 0.1), (512, 1024, 0.03)]
    if not arguments.quick:
        cells += [(2048, 4096, 0.1), (2048, 4096, 0.03)]
    results = {}
    print(f"CPU ms for one pair of layers, one side; T = {arguments.samples}, 1 thread")
    print(
        "   n x n'     eps   floor    ours ours/floor its  log 200 /ours log stop /ours     POT /ours"
        "   dQ/Qmax     L1  plan/duals"
    )
    for n, m, epsilon in cells:
        big = n * m > 1 << 20
        r = results[n, epsilon] = measure(
            n, m, arguments.samples, epsilon, 5 if arguments.quick else 9, 2 if big else 4
        )
        ms = {name: 1e3 * r[name] for name in ("floor", "ours", "log 200", "log stop", "POT")}
        times = " ".join(f"{ms[k]:8.1f} {ms[k] / ms['ours']:5.1f}" for k in ("log 200", "log stop", "POT"))
        print(
            f"{n:5d} x {m:4d} {epsilon:7.2f} {ms['floor']:7.2f} {ms['ours']:7.2f} {r['ours/floor']:10.2f} "
            f"{r['iterations']:3.0f} {times}  {r['accuracy']:8.1e} {r['L1']:.1e} {r['bytes']:9.0f}",
            flush=True,
        )
    # A layer pair of Llama-3.1-8B into Llama-3.2-1B: four sides of 2048 x 4096 and two of 512 x 1024. The baseline also
    # solves the input of k and of v, which is q's: six and two.
    if not arguments.quick:
        for epsilon in (0.1, 0.03):
            large, small = results[2048, epsilon], results[512, epsilon]
            ours = 4 * large["ours"] + 2 * small["ours"]
            floor = 4 * large["floor"] + 2 * small["floor"]
            log = [6 * large[k] + 2 * small[k] for k in ("log 200", "log stop")]
            by_pot = 4 * large["POT"] + 2 * small["POT"]
            print(
                f"all sides of a layer pair, eps {epsilon}: ours {1e3 * ours:.0f} ms; log 200 {log[0] / ours:.0f}x, "
                f"log stop {log[1] / ours:.0f}x, POT {by_pot / ours:.1f}x, ours/floor {ours / floor:.2f}"
            )
            told = f"transport, eps {epsilon}, T = {arguments.samples}"
            print(_ratio(f"{told}: ours / its products", ours / floor, 1.5))
            print(_ratio(f"{told}: POT / ours", by_pot / ours, 10, at_least=True), flush=True)


def _ratio(name: str, value: float, target: float, at_least: bool = False) -> Ratio:
    return Ratio(name, value, value, value, target, at_least)  # of medians: one layer pair is summed of its sides


if __name__ == "__main__":
    main()
