"""Compares all merge methods on two pairs over several seeds and prints the table of docs/methods.md.

    python build/methods.py --data DIR --out build/out/methods

The pairs are those of table.py. A seed draws the calibration and validation text, the placebos' random orders and the
autoencoder's beginning; the held-out text is the same for all. All settings are below: they were set before anything
was measured and are the same for both pairs. No network. Runs resume: what is finished in --out is not computed again.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from table import DEMO, TITLES, begin, parser_of, say

from tmerge_tui.engine import comparison
from tmerge_tui.engine.report.names import short
from tmerge_tui.quantities import bits, duration, interval, signed, size
from tmerge_tui.recipe import make_recipe
from tmerge_tui.run_folder import RunDir


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser_of("Compares all merge methods on two pairs and prints the table.").parse_args(arguments)
    targets = begin(args)
    for pair in args.pairs:
        pages = []
        for seed in range(args.seeds):
            recipe = make_recipe(settings(targets[pair], args.out / f"{pair}-{seed}", seed))
            run, began = RunDir.create(recipe.output), time.monotonic()
            comparison.run(recipe, run, say)
            print(f"{pair}, seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            pages.append(json.loads((run.path / "compare.json").read_text(encoding="utf-8")))
        print("\n".join(table(TITLES[pair], pages)), flush=True)


def settings(target: Path, out: Path, seed: int) -> dict[str, Any]:
    """The recipe of one pair and seed."""
    return {
        "source": str(DEMO / "source-llama"),
        "target": str(target),
        "calibration": {
            "path": str(DEMO / "calibration.txt"), "samples": 200, "pooling": "span", "max_length": 128,
            "validation": 100, "holdout_path": str(DEMO / "holdout.txt"), "holdout": 600,
        },
        "compare_methods": ["transport_merge", "ot_fusion", "ls_merge"],
        "transport": {"projections": ["q", "k", "v", "o", "gate", "up", "down"]},
        "fusion": {"alpha": [0.02, 0.05, 0.1, 0.2], "k": 32, "coupling": "barycentric"},
        "ls_merge": {"width": 64, "blocks": 2, "epochs": 40, "kl_epochs": 10},
        "output": str(out),
        "device": "cpu",
        "seed": seed,
    }  # fmt: skip


def table(title: str, pages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: every method over all seeds, then each against its placebos in the first seed."""
    first = pages[0]["methods"]
    target, source = (_score(first[0], model) for model in ("target", "source"))
    beside = f"target {bits(target['bits_per_byte'])}, source {bits(source['bits_per_byte'])}"
    yield f"**{title}**: {beside}; {len(pages)} seeds"
    yield ""
    yield "| method | strengths | bits per byte | spread | to the target | to its best placebo | beats all | time |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for place, row in enumerate(first):
        rows = [page["methods"][place] for page in pages]
        failed = next((one["reason"] for one in rows if one["reason"] is not None), None)
        if failed is not None:
            yield f"| {row['method']} | could not run: {failed} | | | | | | |"
            continue
        fused = [_score(one, "fused") for one in rows]
        told = [one["bits_per_byte"] for one in fused]
        to_target = statistics.mean(one["difference"] for one in fused)
        to_placebo = statistics.mean(max(one["difference"] for one in each["contrasts"]) for each in rows)
        beats = sum(one["verdict"]["helped"] is True and one["verdict"]["beats_placebos"] for one in rows)
        spread = statistics.stdev(told) if len(told) > 1 else 0.0
        strengths = ", ".join(f"{one['alpha']:g}" for one in rows)
        seconds = [one["seconds"] for one in rows if one["seconds"] is not None]
        took = duration(statistics.median(seconds)) if seconds else "–"
        yield (
            f"| {row['method']} | {strengths} | {bits(statistics.mean(told))} | {spread:.4f} | {signed(to_target)} | "
            f"{signed(to_placebo)} | {beats} of {len(rows)} | {took} |"
        )
    yield ""
    yield "| method | against, seed 0 | difference | 95 % interval |"
    yield "|---|---|---:|---:|"
    for row in first:
        if row["reason"] is None:
            score = _score(row, "fused")
            for c in [score | {"against": "target"}, *row["contrasts"]]:
                against = short(c["against"]).removeprefix("placebo: ")
                between = interval(c["low"], c["high"])
                yield f"| {row['method']} | {against} | {signed(c['difference'])} | {between} |"
    yield ""
    yield f"Most memory: {size(max(one['rss'] for page in pages for one in page['methods']))}."
    yield ""


def _score(row: dict[str, Any], model: str) -> dict[str, Any]:
    return next(score for score in row["scores"] if score["model"] == model)


if __name__ == "__main__":
    main()
