"""Peak memory of whole runs against what `tmerge plan` said: `python -m tests.benchmarks.memory [--full]`.

The demo as it ships, and a merge of tiny models with random weights; `--full` takes Llama-3.1-8B into 1B, which
needs 19 GB of disk. Target: the peak is at most 1.15x of what was said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.ratio import Ratio
from tests.benchmarks.shapes import MODELS, TINY, merge
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.recipe import Recipe, load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the shapes of 8B into 1B too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tmerge-memory-") as root:
        folder = Path(root)
        command = [sys.executable, "-m", "tmerge_tui", "demo", "--output", str(folder / "demo"), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report = json.loads((folder / "demo" / "report.json").read_text(encoding="utf-8"))
        print(compared("demo", load_recipe(folder / "demo" / "recipe.yaml"), report), flush=True)
        for name, models in (("tiny models", TINY), *([("8B into 1B", MODELS)] if args.full else [])):
            place = folder / name.replace(" ", "-")
            report = merge(place, 8, models=models)
            print(compared(name, load_recipe(place / "recipe.yaml"), report), flush=True)


def compared(name: str, recipe: Recipe, report: dict[str, Any]) -> Ratio:
    said = prepare(recipe).estimate.memory_bytes
    peak = report["memory"]["peak_rss"] / said
    return Ratio(f"peak memory / planned, {name}", peak, peak, peak, 1.15)


if __name__ == "__main__":
    main()
