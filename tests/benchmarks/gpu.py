"""One page about this machine's GPU: `make gpu`, or `python -m tests.benchmarks.gpu [--dry-run] [--page FILE]`.

    limits       what the card reaches here: a bf16 product, an fp32 product without TF32, a copy in its memory
    tests        pytest -m gpu
    transport    plans of a layer pair of Llama-3.1-8B into Llama-3.2-1B, against the products alone; equal to the CPU's
    shapes       a whole merge at those shapes with random weights and 2,000 samples: stages, peak memory, share of
                 the bf16 limit that reading reaches
    demo         the demo pair on the GPU and on the CPU: reading, plans, teacher cache, two epochs of distillation,
                 generation; the scores of both

Under ten minutes on one H100. `--dry-run` does all of it on the CPU with tiny sizes, to show that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.shapes import MODELS, TINY, merge
from tests.engine.optimal_transport.problems import make_pair
from tmerge_tui.engine.methods.transport_merge.feature_plans import exact_products
from tmerge_tui.engine.optimal_transport.cost import CorrelationCosts, zscore
from tmerge_tui.engine.optimal_transport.sinkhorn import plan, solve_fast

SCORES = 2e-3  # bits per byte that a score on the GPU may differ from the CPU's: a bf16 forward pass, and training
PLANS = 1e-5  # of a plan's largest entry


class Page:
    """Lines as they come; what fails is a line too."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failed: list[str] = []

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    @contextlib.contextmanager
    def part(self, name: str) -> Any:
        self.say(f"\n## {name}\n")
        began = time.monotonic()
        try:
            yield
        except Exception as error:  # one part must not cost the page the others
            self.failed.append(name)
            self.say(f"FAILED: {type(error).__name__}: {error}")
        self.say(f"\n{time.monotonic() - began:.0f} s")

    def check(self, name: str, ok: bool, told: str) -> None:
        self.say(f"* {name}: {told}, {'as it should be' if ok else 'NOT as it should be'}")
        if not ok:
            self.failed.append(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--page", type=Path, help="write the page there too")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        print("no CUDA device is visible to torch; `--dry-run` shows on the CPU that the page runs", file=sys.stderr)
        return 1
    device, page = torch.device("cpu" if args.dry_run else "cuda"), Page()
    began = time.monotonic()
    page.say(f"# {_named(device)}, torch {torch.__version__}" + (" (dry run: no figure counts)" * args.dry_run))
    limits: dict[str, float] = {}
    with page.part("limits"):
        limits = _limits(device, args.dry_run)
        for name, value in limits.items():
            page.say(f"* {name}: {value:,.3g}")
    with page.part("tests"):
        _tests(page)
    with page.part("transport"):
        _transport(page, device, args.dry_run)
    with page.part("shapes"):
        _shapes(page, device, limits.get("bf16 product, TFLOP/s", 0.0), args.dry_run)
    with page.part("demo"):
        _demo(page, device, args.dry_run)
    page.say(f"\nall {time.monotonic() - began:.0f} s" + (f"; failed: {', '.join(page.failed)}" if page.failed else ""))
    if args.page:
        args.page.write_text("\n".join(page.lines) + "\n", encoding="utf-8")
    return bool(page.failed)


def _named(device: torch.device) -> str:
    if device.type == "cpu":
        return "CPU"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median wall time of `work`, waited for."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def _limits(device: torch.device, tiny: bool) -> dict[str, float]:
    """TFLOP/s of products and GB/s of a copy, as they are reached here and not as they are advertised."""
    n = 256 if tiny else 8192
    half = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    full = torch.randn(n, n, device=device)
    block = torch.empty((1 << 20) if tiny else (1 << 28), device=device)
    flops = 2.0 * n**3 / 1e12
    with exact_products():
        exact = flops / seconds(lambda: full @ full, device)
    return {
        "bf16 product, TFLOP/s": flops / seconds(lambda: half @ half, device),
        "fp32 product without TF32, TFLOP/s": exact,
        "copy in memory, GB/s": 2 * block.nbytes / 1e9 / seconds(block.clone, device),
    }


def _tests(page: Page) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    # 5: nothing was collected; without a GPU all are skipped
    page.check("pytest -m gpu", done.returncode == 0, (done.stdout.strip().splitlines() or ["no output"])[-1])


def _transport(page: Page, device: torch.device, tiny: bool) -> None:
    """The four sides of 2048 x 4096 and two of 512 x 1024 of one target layer, with T = 512 rows."""
    sides = [(64, 128, 6)] if tiny else [(2048, 4096, 4), (512, 1024, 2)]
    whole = floor = 0.0
    for n, m, count in sides:
        X, Y = make_pair(512, n, m, rank=48, noise=0.25, seed=7)
        Zx, Zy = zscore(X), zscore(Y)
        on = CorrelationCosts(Zx.to(device), [Zy.to(device)] * 4)
        for epsilon in (0.1, 0.03):
            with exact_products():
                ours = seconds(lambda costs=on, eps=epsilon: solve_fast(costs, eps), device, 3) / 4
                products = seconds(lambda costs=on: [costs.Zx.T @ each for each in costs.Zys], device, 3) / 4
                there = plan(on, epsilon, solve_fast(on, epsilon)[0]).double().cpu()
            here_costs = CorrelationCosts(Zx, [Zy])
            here = plan(here_costs, epsilon, solve_fast(here_costs, epsilon)[0]).double()
            apart = float((there - here).abs().max() / here.max())
            page.say(f"* {n} x {m}, eps {epsilon}: {1e3 * ours:.2f} ms a pair, its products {1e3 * products:.2f} ms")
            page.check(f"  plan of {n} x {m}, eps {epsilon}", apart < PLANS, f"{apart:.1e} from the CPU's")
            if epsilon == 0.1:
                whole, floor = whole + count * ours, floor + count * products
    page.say(f"* all sides of a layer pair, eps 0.1: {whole / floor:.2f}x the products")


def _shapes(page: Page, device: torch.device, limit: float, tiny: bool) -> None:
    samples = 24 if tiny else 2000
    with tempfile.TemporaryDirectory(prefix="tmerge-gpu-") as folder:
        models = TINY if tiny else MODELS
        began = time.monotonic()
        report = merge(Path(folder), samples, str(device), models=models)
        page.say(f"* 8B into 1B, {samples:,} samples of up to 64 tokens: {time.monotonic() - began:.0f} s, models made")
        _stages(page, report)
        memory = report["memory"]
        page.say(f"* peak {memory['peak_rss'] / 2**30:.2f} GiB, GPU {memory['peak_gpu'] / 2**30:.2f} GiB")
        took = {row["stage"]: row["seconds"] for row in report["timings"]}
        for role in ("source", "target"):
            parameters = report["models"][role]["parameters"]
            rate = 2 * parameters * 64 * samples / took[f"extract_{role}"] / 1e12
            share = f", {rate / limit:.0%} of the bf16 limit" if limit else ""
            page.say(f"* reading the {role}: {rate:.2f} TFLOP/s at most{share}")


def _demo(page: Page, device: torch.device, tiny: bool) -> None:
    """The demo pair on both; training and choosing amplify the last bits, so scores are compared, and not weights."""
    reports = {}
    with tempfile.TemporaryDirectory(prefix="tmerge-gpu-") as folder:
        for name in dict.fromkeys((str(device), "cpu")) if not tiny else ("cpu",):
            out = Path(folder) / name
            few = ["calibration.samples=60", "calibration.holdout=20", "adaptation.epochs=1"] if tiny else []
            sets = [part for option in few for part in ("--set", option)]
            command = [sys.executable, "-m", "tmerge_tui", "demo", "--output", str(out), "--device", name, *sets]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
            if done.returncode:
                raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-400:]}")
            reports[name] = json.loads((out / "report.json").read_text(encoding="utf-8"))
            page.say(f"* on {name}: {reports[name]['verdict']['headline']}")
            _stages(page, reports[name])
    mine, other = reports[str(device)], reports["cpu"]
    scores = {(row["model"], row["alpha"]): row["bits_per_byte"] for row in other["scores"]}
    for row in mine["scores"]:
        key = row["model"], row["alpha"]
        if key in scores:
            apart = abs(row["bits_per_byte"] - scores[key])
            page.check(
                f"{row['model']}, alpha {row['alpha']}", apart < SCORES, f"{apart:.1e} bits per byte from the CPU"
            )


def _stages(page: Page, report: dict[str, Any]) -> None:
    told = ", ".join(f"{row['stage']} {row['seconds']:.1f}" for row in report["timings"] if row["seconds"] >= 0.05)
    page.say(f"* seconds: {told}")


if __name__ == "__main__":
    sys.exit(main())
