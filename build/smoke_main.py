"""The command line of build/smoke: which checks, one after another, and what came of them."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import smoke_families
import smoke_first
import smoke_place
import smoke_stops
import smoke_wizard
from smoke_box import ROOT, WINDOWS, Box, Failed, NotChecked
from smoke_merge import World

CHECKS: dict[str, Callable[[World], str]] = {
    **smoke_first.CHECKS,
    **smoke_families.CHECKS,
    **smoke_stops.CHECKS,
    **smoke_place.CHECKS,
    **smoke_wizard.CHECKS,
}


def main(about: str | None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", type=Path, default=ROOT / "dist" / ("tmerge.exe" if WINDOWS else "tmerge"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these checks only")
    parser.add_argument("--list", action="store_true", help="print the names of the checks and what they are about")
    parser.add_argument(
        "--figures", type=Path, metavar="FILE.json", help="measure instead: times and sizes, medians of 5"
    )
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder")
    options = parser.parse_args()
    if options.list:
        for name, check in CHECKS.items():
            print(f"{name:<12} {(check.__doc__ or '').splitlines()[0]}")
        return 0
    unknown = sorted(set(options.only or ()) - set(CHECKS))
    if unknown:
        parser.error(f"no check {', '.join(unknown)}; --list names them")
    if not options.binary.is_file():
        parser.error(f"no {options.binary}: `make binary` makes it")
    folder = Path(tempfile.mkdtemp(prefix="tmerge-smoke-")).resolve()
    box = Box(folder, options.binary.resolve())
    try:
        if options.figures:
            from smoke_figures import measure  # its terminals are POSIX's

            measure(World(box), options.figures)
            return 0
        return run(World(box), options.only or list(CHECKS))
    finally:
        for process in box.processes():
            process.kill()
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def run(world: World, names: list[str]) -> int:
    """Runs the checks in turn, each to its end whatever the others came to; the exit code."""
    began, ended = time.monotonic(), {"ok": 0, "FAILED": 0, "not checked": 0}
    missed = []
    for name in names:
        start = time.monotonic()
        outcome, said = attempt(world, CHECKS[name])
        ended[outcome] += 1
        first, *rest = said.splitlines() or [""]
        print(f"{outcome:<11}  {name:<12} {time.monotonic() - start:6.1f} s  {first}", flush=True)
        for line in rest:
            print(f"             | {line}", flush=True)
        if outcome == "not checked":
            missed.append(f"not checked: {name}: {first}")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in ended.items())
    print(*missed, f"{counts}; {time.monotonic() - began:.0f} s", sep="\n")
    return int(ended["FAILED"] > 0)


def attempt(world: World, check: Callable[[World], str]) -> tuple[str, str]:
    """(outcome, what is said about it). A check that leaves a process or a temporary folder has failed too."""
    try:
        said = check(world)
        world.box.gone()
        left = [path.name for path in world.box.tmp.iterdir() if path.name.startswith("_MEI")]
        return ("FAILED", f"left in TMPDIR: {left}") if left else ("ok", said)
    except NotChecked as error:
        return "not checked", str(error)
    except Failed as error:
        return "FAILED", str(error)
    except Exception:
        return "FAILED", traceback.format_exc()
    finally:
        for process in world.box.processes():
            process.kill()
        for path in world.box.tmp.iterdir():
            shutil.rmtree(path, ignore_errors=True)
