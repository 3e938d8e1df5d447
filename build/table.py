"""Trains every method on two pairs at equal tokens and prints the table of the README.

    python build/table.py --data DIR --out build/out/table

Strangers: the pair of the demo, of two families with two tokenizers, trained apart. Relatives: a target cut out of the
same source by `train_relatives.py`, with the source's tokenizer; DIR holds its text (see train_demo.py). Both train on
the demo's calibration text, which no target has read, and are measured on the demo's held-out text. All settings are
below: they were set before anything was measured and are the same for both pairs. No network. Runs resume: what is
finished in --out is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.quantities import bits, interval, signed
from tmerge_tui.recipe import make_recipe
from tmerge_tui.run_folder import RunDir

DEMO = Path(__file__).parents[1] / "assets" / "demo"
UNTRAINED = {
    "source": "source",
    "shrink": "placebo: rows shrunk, not trained",
    "permuted": "placebo: source permuted, not trained",
}
TITLES = {"strangers": "Strangers (other family, other tokenizer)", "relatives": "Relatives (cut out of the source)"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("Trains every method on two pairs and prints the table.")
    parser.add_argument("--lines", type=int, default=2000, help="training lines")
    parser.add_argument("--epochs", type=int, default=1, help="passes over them")
    args = parser.parse_args(arguments)
    targets = begin(args)
    for pair in args.pairs:
        recipe = make_recipe(settings(targets[pair], args.out / pair, args.seeds, args.lines, args.epochs))
        run = RunDir.create(recipe.output)
        began = time.monotonic()
        pipeline.run(recipe, run, say)
        print(f"{pair}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for pair in args.pairs:
        print("\n".join(table(TITLES[pair], json.loads((args.out / pair / "report.json").read_text()))), flush=True)


def parser_of(description: str) -> argparse.ArgumentParser:
    """What every script asks that measures on these pairs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder with the text files of train_demo.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for models and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", nargs="+", choices=tuple(TITLES), default=list(TITLES))
    parser.add_argument("--threads", type=int, default=1)
    return parser


def begin(args: argparse.Namespace) -> dict[str, Path]:
    """The target of each pair; the relatives' is made when it is asked for."""
    torch.set_num_threads(args.threads)
    targets = {"strangers": DEMO / "target-qwen2", "relatives": args.out / "relative"}
    if "relatives" in args.pairs:
        cut_relative(targets["relatives"], args.data)
    return targets


def cut_relative(folder: Path, data: Path) -> None:
    """Makes the relatives' target in `folder`, unless it is there."""
    if not (folder / "README.md").exists():
        script = Path(__file__).with_name("train_relatives.py")
        source = ["--source", str(DEMO / "source-llama"), "--out", str(folder)]
        subprocess.run([sys.executable, str(script), "--data", str(data), *source], check=True)


def settings(target: Path, out: Path, seeds: int, lines: int, epochs: int) -> dict[str, Any]:
    """The recipe of one pair."""
    return {
        "source": str(DEMO / "source-llama"),
        "target": str(target),
        "calibration": {
            "path": str(DEMO / "calibration.txt"), "samples": 1000, "pooling": "span", "max_length": 256,
            "holdout_path": str(DEMO / "holdout.txt"), "holdout": 600,
        },
        "transport": {"projections": ["q", "k", "v", "o", "gate", "up", "down"], "epsilon": 0.03},
        "fusion": {"alpha": 0.05, "k": 32, "coupling": "barycentric", "norm": "keep"},
        "adaptation": {
            "path": str(DEMO / "calibration.txt"), "samples": lines, "block_length": 256, "packing": "pad",
            "batch_size": 16, "accumulation": 1, "learning_rate": 5e-4, "warmup": 0.05, "checkpoints": 1,
            "epochs": epochs, "seeds": list(range(seeds)), "compare": ["sft", "distill"], "teacher": {},
            "controls": ["other_text", "permuted", "unigram", "self"],
            "hints": {"weight": 0.5, "sides": ["qkv.in", "down.in"], "with_distill": True},
        },
        "output": str(out),
        "device": "cpu",
    }  # fmt: skip


def say(event: events.Event) -> None:
    """One line a stage and a training, to stderr."""
    if isinstance(event, events.StageFinished):
        print(f"{event.stage} {event.outcome} {event.seconds:.0f} s", file=sys.stderr, flush=True)
    elif isinstance(event, events.Warned):
        print(f"warning: {event.where}: {event.message}", file=sys.stderr, flush=True)
    elif isinstance(event, events.TrainingStep) and event.step == event.steps:
        told = f"{event.method} seed {event.seed}: {event.steps} steps, loss {event.loss:.3f}"
        print(f"{told}, {event.tokens_per_second:,.0f} tokens/s", file=sys.stderr, flush=True)


def table(title: str, report: dict[str, Any]) -> Iterator[str]:
    """Markdown: the table of the paper for one pair, and who beats whom."""
    adaptation = report["adaptation"]
    seeds = len(adaptation["seeds"])
    yield f"**{title}**: {adaptation['steps']} steps on {adaptation['tokens']:,} tokens, {seeds} seeds"
    yield ""
    yield "| model | bits per byte | spread over seeds | difference to the target | 95 % interval |"
    yield "|---|---:|---:|---:|---:|"
    untrained = [s for s in report["scores"] if s["model"] in UNTRAINED]
    fused = [row for row in adaptation["rows"] if row["model"] in ("target", "fused")]
    trained = [row for row in adaptation["rows"] if row["model"] not in ("target", "fused")]
    for row in [*fused, *untrained, *trained]:
        spread = "–" if row.get("spread") is None else f"{row['spread']:.4f}"
        name = UNTRAINED.get(row["model"]) or beside_trained(row["model"])
        between = interval(row["low"], row["high"])
        yield f"| {name} | {bits(row['bits_per_byte'])} | {spread} | {signed(row['difference'])} | {between} |"
    yield ""
    yield "| trained model | against | difference | 95 % interval |"
    yield "|---|---|---:|---:|"
    for c in adaptation["contrasts"]:
        between = interval(c["low"], c["high"])
        ours, theirs = beside_trained(c["model"]), beside_trained(c["against"])
        yield f"| {ours} | {theirs} | {signed(c['difference'])} | {between} |"
    yield ""
    yield f"Distillation compares {adaptation['distillation']}."
    yield ""


if __name__ == "__main__":
    main()
