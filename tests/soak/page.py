"""One page of figures: `python -m tests.soak.page --minutes 2 --seed 0 --out build/out/soak`.

Mutations come first and get 40 % of the time, then kills, disks and the rest; the page says how much of each was done.
Every failure leaves its smallest input in OUT/failures; the exit code is 1 when there is one.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: children are forked
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.soak import disks, kills, tokenizers
from tests.soak.checkpoints import CHECKPOINTS
from tests.soak.judge import Campaign, Figures, run_campaign
from tests.soak.network import NETWORK
from tests.soak.recipes import RECIPES
from tests.soak.runs import Bench, Tally
from tests.soak.texts import TEXTS

MUTATIONS: tuple[Campaign, ...] = (RECIPES, CHECKPOINTS, tokenizers.TOKENIZERS, TEXTS, NETWORK)
RUNS = ("kills", "disks", "processes")
FULL = 60.0  # minutes from which on every count is a full one
MUTATED = 0.4  # share of the time
KILLS, WRITES, MOUNTS = 200, 120, 6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="attacks tmerge on purpose and writes a page of figures")
    parser.add_argument("--minutes", type=float, default=FULL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/out/soak"))
    parser.add_argument("--only", default="", help="parts to run, beside what OUT has: kills, disks, recipes, ...")
    parser.add_argument("--share", type=float, help="of a full run's counts; otherwise as the minutes allow")
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    end = begun + 60 * given.minutes
    share = given.share or min(1.0, given.minutes / FULL)
    parts = given.only.split(",") if given.only else [*(one.name for one in MUTATIONS), *RUNS]
    print(f"soak: {given.minutes:g} minutes, seed {given.seed}", flush=True)
    found: dict[str, Any] = _before(given.out) if given.only else {}
    chosen = [campaign for campaign in MUTATIONS if campaign.name in parts]
    if chosen:
        before = {one["name"]: one for one in found.get("mutations", [])}
        whole = (end - begun) * (MUTATED if set(RUNS) & set(parts) else 1.0)
        new = _mutations(chosen, given.seed, share, begun + whole, given.out)
        before |= {one.name: dataclasses.asdict(one) for one in new}
        found["mutations"] = [before[one.name] for one in MUTATIONS if one.name in before]
    if set(RUNS) & set(parts):
        with tempfile.TemporaryDirectory(prefix="tmerge-soak-runs-") as place, Bench(Path(place)) as bench:
            for name, tallies in _runs(bench, given, end, share, parts):
                found[name] = [dataclasses.asdict(one) for one in tallies]
    found |= {"seed": given.seed, "python": platform.python_version(), "system": platform.system()}
    found["minutes"] = round(found.get("minutes", 0) * bool(given.only) + (time.monotonic() - begun) / 60, 1)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "soak.json").write_text(json.dumps(found, indent=1, default=str, ensure_ascii=False) + "\n", "utf-8")
    (given.out / "soak.md").write_text(page(found), "utf-8")
    faults = sum(len(one["faults"]) for name in TITLES for one in found.get(name, ()))
    print(f"soak: {faults} faults; {given.out / 'soak.md'}", flush=True)
    return int(faults > 0)


def _before(out: Path) -> dict[str, Any]:
    """What an earlier call found, when parts are run one after the other."""
    try:
        return json.loads((out / "soak.json").read_text("utf-8"))
    except OSError:
        return {}


def _mutations(chosen: Sequence[Campaign], seed: int, share: float, end: float, out: Path) -> Iterator[Figures]:
    if tokenizers.TOKENIZERS in chosen:
        tokenizers.base()
    for place, campaign in enumerate(chosen):
        until = time.monotonic() + (end - time.monotonic()) / (len(chosen) - place)
        found = run_campaign(campaign, seed, share, until, out / "failures")
        print(f"  {campaign.name}: {found.cases} cases, {len(found.faults)} faults, {found.seconds:.0f} s", flush=True)
        yield found


def _runs(
    bench: Bench, given: argparse.Namespace, end: float, share: float, parts: Sequence[str]
) -> Iterator[tuple[str, list[Tally]]]:
    begun = time.monotonic()

    def some(count: int) -> int:
        return max(1, round(count * share))

    steps: dict[str, Callable[[float], list[Tally]]] = {
        "kills": lambda until: [kills.kills(bench, given.seed, some(KILLS), until)],
        "disks": lambda until: [
            disks.injected(bench, given.seed, some(WRITES), begun + (until - begun) * 0.8),
            *disks.mounted(bench, given.seed, some(MOUNTS), until),
        ],
        "processes": lambda until: kills.processes(bench, given.seed, until, 60.0 if given.minutes >= FULL else 2.0),
    }
    shares = {"kills": 0.5, "disks": 0.85, "processes": 1.0}
    for name, step in steps.items():
        if name in parts:
            until = end if len(parts) == 1 else begun + (end - begun) * shares[name]
            found = step(until)
            for one in found:
                print(f"  {one.name}: {one.done} times, {one.equal} equal, {len(one.faults)} faults", flush=True)
            yield name, found


TITLES = {
    "mutations": "Mutated input",
    "kills": "Killed",
    "disks": "Disks",
    "processes": "Processes and clocks",
}


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["# Soak", "", _told(ABOUT["soak"].format(**found)), ""]
    if "mutations" in found:
        head = ("input", "cases", "clear error", "right result", "slowest", "most memory", "faults")
        rows = [
            (one["name"], one["cases"], one["refused"], one["accepted"], f"{one['slowest']:.1f} s",
             f"{one['peak'] / 1e6:,.0f} MB", len(one["faults"]))
            for one in found["mutations"]
        ]  # fmt: skip
        lines += ["## Mutated input", "", _told(ABOUT["mutations"]), "", *_table(head, rows), ""]
    for name in list(TITLES)[1:]:
        tallies = found.get(name, [])
        if not tallies:
            continue
        head = ("what", "times", "clear error", "equal afterwards", "faults")
        rows = [(r["name"], r["done"], r["refused"], f"{r['equal']} runs", len(r["faults"])) for r in tallies]
        lines += [f"## {TITLES[name]}", "", _told(ABOUT[name]), "", *_table(head, rows), ""]
        for row in tallies:
            met = ", ".join(f"{stage} {count}" for stage, count in sorted(row["where"].items()))
            said = [
                *([f"by the stage that was going on: {met}"] if met else []),
                *([row["note"]] if row["note"] else []),
            ]
            lines += [_told(f"{row['name'].capitalize()}, {'; '.join(said)}."), ""] if said else []
    faults = [(one["name"], fault) for name in TITLES for one in found.get(name, ()) for fault in one["faults"]]
    lines += ["## Faults", ""] if faults else []
    for what, fault in faults:
        told = fault if isinstance(fault, str) else f"{fault['fault']} ({fault['times']} times)"
        lines.append(f"* {what}: {' '.join(str(told).split())[:300]}")
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    marks = ["---", *["---:"] * (len(head) - 1)]
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(head), marks, *cells)]


def _told(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


ABOUT = {
    "soak": """
        `make soak` attacks tmerge on purpose. This page is from {minutes:g} minutes on two shared cores, seed
        {seed}, Python {python} on {system}; soak.json beside it has the same figures. The same seed gives the
        same cases.""",
    "mutations": """
        Each case is a valid input with a few random edits, or one that was made to do harm. It has to end in a
        clear error or in the right result, within 20 s and 6 GB, without a traceback and without touching a
        file outside its folder. Right is: a recipe reads back as itself; tensors are those that safetensors and
        torch read; a template writes what transformers makes of it; a downloaded file is the Hub's.""",
    "kills": """
        A run on tiny models from a local Hub is ended by SIGKILL again and again, at random moments and at
        random events of every stage, then finished; model, pieces and report are compared byte for byte with a
        run that nothing disturbed.""",
    "disks": """
        Failing writes are ENOSPC, EIO, EDQUOT or EROFS at one of all places where a run writes, in run folder
        and cache; the rest is a real small file system. Each run is then finished on a good disk and compared.""",
    "processes": """
        Three workers at once in one folder; a lock that another host has left; a clock that goes back an hour
        and then a day ahead; SIGSTOP for a while, twice; text that is changed after the check. Compared as
        above.""",
}


if __name__ == "__main__":
    sys.exit(main())
