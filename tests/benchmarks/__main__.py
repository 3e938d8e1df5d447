"""Every benchmark, then a table of all ratios: `python -m tests.benchmarks [NAME ...] [--json FILE]`, `make bench`.

Each runs in a process of its own, as `python -m tests.benchmarks.NAME` would; what it prints is shown as it comes.
Exit code 1 when one of them failed; a target that is missed is told and is no failure.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.ratio import MARK

LEFT_OUT = ("models", "ratio", "gpu")  # no benchmarks; one that needs its own machine


def main() -> int:
    here = Path(__file__).parent
    names = sorted(p.stem for p in here.glob("[a-z]*.py") if p.stem not in LEFT_OUT)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)}; all when empty")
    parser.add_argument("--json", type=Path, help="the table as JSON")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(names))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    rows, failed = [], []
    for name in args.names or names:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-u", "-m", f"tests.benchmarks.{name}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith(MARK):
                    rows.append([cell.strip() for cell in line.strip().strip("|").split("|")][1:])
        if process.returncode:
            failed.append(name)
    print(f"\n{platform.processor() or platform.machine()}, {platform.platform()}; medians of interleaved rounds\n")
    print("| what | median | rounds | target | |\n|---|---:|---:|---:|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if args.json:
        keys = ("name", "median", "rounds", "target", "outcome")
        args.json.write_text(
            json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=1), encoding="utf-8"
        )
    for name in failed:
        print(f"{name} failed", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
