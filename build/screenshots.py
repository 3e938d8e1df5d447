"""Draws the pictures of the README with the application itself: models.svg, run.svg and result.svg of assets/pictures.

    python build/screenshots.py --out assets/pictures

Runs the demo in a temporary folder (under a minute), opens the wizard there without a terminal, and saves its screens.
The Run screen is the demo's own event file cut in the middle of the transport stage, its clock set to now.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Input

from tmerge_tui import shipped
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.result import ResultScreen
from tmerge_tui.tui.screens.run import RunScreen
from tmerge_tui.tui.widgets.verdict import Verdict
from tmerge_tui.worker.follow import Follower

SIZE = (120, 36)
RUN = Path("tmerge-demo")
CUT = 0.62  # of the pairs are solved in the picture of the run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/pictures"))
    out = parser.parse_args().out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_STATE_HOME": f"{folder}/state", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
        os.environ.pop("NO_COLOR", None)
        work = Path(folder) / "demo"
        shutil.copytree(shipped.folder() / "demo", work)
        os.chdir(work)
        subprocess.run([sys.executable, "-m", "tmerge_tui", "--batch", "recipe.yaml", "--quiet"], check=True)
        pictures = asyncio.run(draw())
    for name, svg in pictures.items():
        (out / f"{name}.svg").write_text(svg, encoding="utf-8")


async def draw() -> dict[str, str]:
    """The pictures by name, as SVG."""
    app = TmergeApp()
    app.animation_level = "none"
    Input.cursor_blink._default = False  # type: ignore[attr-defined]
    async with app.run_test(size=SIZE) as pilot:
        for role, folder in (("source", "./source-llama"), ("target", "./target-qwen2")):
            app.change(f"{role}.model", folder)
        app.goto("models")
        await until(pilot, lambda: any(verdict.said for verdict in app.screen.query(Verdict)))
        pictures = {"models": app.export_screenshot(title="tmerge")}

        screen = RunScreen(RUN, half_way())
        app.go_home()
        app.push_screen(screen)
        await until(pilot, lambda: screen.is_mounted and screen.state.heat is not None and screen.follower.caught_up())
        pictures["run"] = app.export_screenshot(title="tmerge")

        app.show_result(RUN)
        await until(pilot, lambda: isinstance(app.screen, ResultScreen) and bool(app.screen.results))
        pictures["result"] = app.export_screenshot(title="tmerge")
    app.probe.kill()
    await asyncio.gather(*app.probe._tasks)  # its pipes are closed before the loop is
    return pictures


async def until(pilot: Pilot[Any], ready: Any) -> None:
    """Waits for the screen, then for what it still draws. Raises TimeoutError after two minutes."""
    async with asyncio.timeout(120):
        while not ready():
            await pilot.pause(0.1)
    await pilot.pause(1)


def half_way() -> Follower:
    """The demo as it was in the middle of its transport stage: its events so far, and a worker that is alive."""
    lines = [json.loads(line) for line in (RUN / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    solved = [i for i, line in enumerate(lines) if line["type"] == "PairSolved"]
    shown = lines[: solved[int(len(solved) * CUT)] + 1]
    shift = time.time() - shown[-1]["t"]
    run = RunDir.create(Path("half-way"))
    run.events.write_text("".join(json.dumps({**line, "t": line["t"] + shift}) + "\n" for line in shown))
    return Follower(run, worker=SimpleNamespace(returncode=None))


if __name__ == "__main__":
    main()
