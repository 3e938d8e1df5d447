"""Where distillation pays: the demo pair over numbers of texts and passes, as a table and a figure.

    python build/curve.py --out build/out/curve [--texts 125 500 2000] [--passes 1 4 12 24]

Plain fine-tuning and distillation by byte events, one seed, on the first so many lines of the demo's calibration text,
measured on its held-out text; every other setting is that of `build/table.py`, set before any was measured. Nothing
stops early: where more passes hurt, the curve shows it. No network; runs resume.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from table import DEMO, say

from tmerge_tui.engine import pipeline
from tmerge_tui.engine.report.axes import Frame
from tmerge_tui.engine.report.svg import SERIES, Figure, line, marker, polyline, text, ticks
from tmerge_tui.quantities import bits, interval, signed
from tmerge_tui.recipe import make_recipe
from tmerge_tui.run_folder import RunDir

SHAPES = ("disc", "square", "diamond")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the table and the figure")
    parser.add_argument("--texts", type=int, nargs="+", default=[125, 500, 2000])
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 4, 12, 24])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for passes in args.passes:
        for texts in args.texts:
            began = time.monotonic()
            run = RunDir.create(args.out / f"{texts}x{passes}")
            if not (run.path / "report.json").exists():
                pipeline.run(make_recipe(settings(run.path, texts, passes)), run, say)
            report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
            rows.append(point(texts, passes, report))
            print(f"{texts} texts, {passes} passes: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print("| texts | passes | SFT | distilled | distilled - SFT | 95 % interval |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: (row["texts"], row["passes"])):
        between = interval(row["low"], row["high"])
        told = f"{bits(row['sft'])} | {bits(row['distilled'])} | {signed(row['difference'])} | {between}"
        print(f"| {row['texts']:,} | {row['passes']} | {told} |")
    (args.out / "curve.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (args.out / "curve.svg").write_text(figure(rows).standalone(), encoding="utf-8")


def settings(out: Path, texts: int, passes: int) -> dict[str, Any]:
    """The recipe of one point: no merge but the cheapest, since nothing starts from it."""
    return {
        "source": str(DEMO / "source-llama"),
        "target": str(DEMO / "target-qwen2"),
        "calibration": {
            "path": str(DEMO / "calibration.txt"), "samples": 64, "max_length": 256,
            "holdout_path": str(DEMO / "holdout.txt"), "holdout": 600,
        },
        "transport": {"projections": ["q"]},
        "fusion": {"alpha": 0.0, "k": 8},
        "adaptation": {
            "path": str(DEMO / "calibration.txt"), "samples": texts, "block_length": 256, "packing": "pad",
            "batch_size": 16, "accumulation": 1, "learning_rate": 5e-4, "warmup": 0.05, "checkpoints": 1,
            "epochs": passes, "start": "target", "compare": ["sft", "distill"],
        },
        "evaluation": {"controls": []},
        "output": str(out),
        "device": "cpu",
    }  # fmt: skip


def point(texts: int, passes: int, report: dict[str, Any]) -> dict[str, Any]:
    found = report["adaptation"]
    scores = {row["model"]: row["bits_per_byte"] for row in found["rows"]}
    contrast = next(c for c in found["contrasts"] if (c["model"], c["against"]) == ("distilled", "sft"))
    between = {name: contrast[name] for name in ("difference", "low", "high")}
    return {"texts": texts, "passes": passes, "sft": scores["sft"], "distilled": scores["distilled"], **between}


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Bits per byte over passes: a colour for each number of texts, SFT dashed, distilled whole."""
    passes = sorted({row["passes"] for row in rows})
    values = [row[arm] for row in rows for arm in ("sft", "distilled")]
    room = 0.05 * (max(values) - min(values))
    frame = Frame(64.0, 40.0, 470.0, 260.0, min(values) - room, max(values) + room)
    body = frame.levels(ticks(frame.low, frame.high), lambda value: f"{value:.2f}")
    body += frame.below((frame.at_place(i, len(passes)), f"{each}") for i, each in enumerate(passes))
    body += frame.names("passes over the text", "bits per byte, held out")
    for number, texts in enumerate(sorted({row["texts"] for row in rows})):
        mine = sorted((row for row in rows if row["texts"] == texts), key=lambda row: row["passes"])
        css, shape = f"s{number % SERIES}", SHAPES[number % len(SHAPES)]
        for arm, dash in (("sft", "5 4"), ("distilled", "")):
            points = [(frame.at_place(passes.index(row["passes"]), len(passes)), frame.at_y(row[arm])) for row in mine]
            body.append(polyline(points, f"{css} line", dash))
            look = css if arm == "distilled" else f"{css} hollow"
            body += [
                marker(x, y, shape, look, f"{texts} texts, {row['passes']} passes, {arm}: {bits(row[arm])}")
                for (x, y), row in zip(points, mine, strict=True)
            ]
        at = frame.left + 150 * number
        body += [line(at, 18, at + 24, 18, f"{css} line"), marker(at + 12, 18, shape, css)]
        body.append(text(at + 30, 22, f"{texts:,} texts"))
    title = "Bits per byte after training on so many texts for so many passes: distilled whole, SFT dashed"
    return Figure("curve", title, frame.right + 14, frame.bottom + 48, "".join(body))


if __name__ == "__main__":
    main()
