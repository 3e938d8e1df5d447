"""The whole claim on two real models: scout, fine-tuning, distillation, its placebo and the choice, as one table.

    make real ARGS="--source DIR_OR_ID --target DIR_OR_ID --train FILE --holdout FILE"
    python -m tests.real --source ... [--texts 500] [--held-out 200] [--passes 1] [--out tmerge-real] [--threads 2]

Opt-in: it needs models, text and up to 90 minutes on two cores, and is no part of `make test`. Settings are below and
were set before anything was measured. The source is tuned on the training text first; the target is trained plainly,
with the tuned source as teacher, with the source as it was, and with what the tuned source said of another text (the
placebo); validation text, which nothing is trained or measured on, chooses what becomes model/. Runs resume.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.quantities import bits, interval, signed


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe: nothing of it was chosen on the hold-out."""
    return {
        "source": args.source,
        "target": args.target,
        "calibration": {
            "path": args.train, "samples": args.texts, "validation": args.validation, "max_length": 256,
            "holdout_path": args.holdout, "holdout": args.held_out,
        },
        "transport": {"projections": ["q", "v"]},
        "fusion": {"alpha": 0.05, "coupling": "barycentric"},
        "adaptation": {
            "start": "target", "teacher": {"tune": "full", "tune_learning_rate": 5e-5, "tune_epochs": args.passes},
            "compare": ["sft", "distill"], "controls": ["other_text", "untuned"], "samples": args.texts,
            "learning_rate": 5e-5, "epochs": args.passes, "packing": "pad", "block_length": 256, "batch_size": 8,
            "accumulation": 1, "checkpoints": 1,
        },
        "select": "validation",
        "output": str(args.out / "run"),
        "device": args.device,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder or Hub id of the better model")
    parser.add_argument("--target", required=True, help="folder or Hub id of the smaller model")
    parser.add_argument("--train", required=True, help="text to read and train on, one a line")
    parser.add_argument("--holdout", required=True, help="text to measure on, one a line")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--validation", type=int, default=60)
    parser.add_argument("--passes", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("tmerge-real"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = args.out / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings(args), sort_keys=False), encoding="utf-8")
    began = time.monotonic()
    for command in (["scout", str(recipe)], ["--batch", str(recipe)]):
        print(f"== tmerge {' '.join(command)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "tmerge_tui", *command], check=False).returncode
        if code:
            print(f"tmerge {command[0]} ended with {code}; run this again and it goes on", file=sys.stderr)
            return code
    report = json.loads((args.out / "run" / "report.json").read_text(encoding="utf-8"))
    print("\n".join(table(report)))
    print(f"\n{time.monotonic() - began:.0f} s on this machine, {args.threads} threads")
    return 0


def table(report: dict[str, Any]) -> Iterator[str]:
    """Markdown: every model on the hold-out, who beats whom, what was chosen."""
    yield f"\n{report['verdict']['headline']}\n"
    yield "| model | bits per byte | difference to the target | 95 % interval |"
    yield "|---|---:|---:|---:|"
    trained = report["adaptation"]["rows"]
    untrained = [row for row in report["scores"] if row["model"] in ("source", "fused", "shrink", "permuted")]
    for row in [trained[0], *untrained, *(row for row in trained[1:] if row["model"] != "fused")]:
        between = interval(row["low"], row["high"])
        told = f"{bits(row['bits_per_byte'])} | {signed(row['difference'])} | {between}"
        yield f"| {beside_trained(row['model'])} | {told} |"
    yield "\n| trained model | against | difference | 95 % interval |"
    yield "|---|---|---:|---:|"
    for c in report["adaptation"]["contrasts"]:
        names = f"{beside_trained(c['model'])} | {beside_trained(c['against'])}"
        yield f"| {names} | {signed(c['difference'])} | {interval(c['low'], c['high'])} |"
    scores = {row["model"]: row["bits_per_byte"] for row in trained}
    tuned = report["adaptation"]["tuned"]
    if tuned is not None:
        plain = {name: value for name, value in tuned.items() if isinstance(value, (int, float, str))}
        yield f"\nThe source on validation text: {json.dumps(plain)}"
    if {"sft", "distilled"} <= set(scores):
        yield f"\nDistilled minus SFT: {signed(scores['distilled'] - scores['sft'])} bits per byte."


if __name__ == "__main__":
    sys.exit(main())
