"""How long a key waits while a run tells 1,000 events a second, and how soon the first screen stands.

    python -m tests.benchmarks.wizard [seconds]

Prints one JSON object: times in milliseconds from a key to the screen it changes, in the run screen at 160 x 50.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from textual.events import Key

from tests.tui.doubles import FakeProbe
from tests.tui.fakes import events
from tmerge_tui.events import RunFinished, RunStarted, encode
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.run import RunScreen
from tmerge_tui.worker import lock

RATE = 1_000  # events a second
IMPORTS = "import sys, time; t = time.perf_counter(); import tmerge_tui.tui.app, tmerge_tui.tui.screens.home; \
print(time.perf_counter() - t, 'torch' in sys.modules)"


def write(run: RunDir) -> None:
    """A worker's pen: ten bursts a second, until it is killed."""
    lines = [event for event in events(str(run.path)) if not isinstance(event, (RunStarted, RunFinished))]
    stream = cycle(lines)
    with open(run.events, "a") as file:
        file.write(encode(next(iter(events(str(run.path)))), 0, time.time()) + "\n")
        sequence = 0
        due = time.monotonic()
        while True:
            for _ in range(RATE // 10):
                sequence += 1
                file.write(encode(next(stream), sequence, time.time()) + "\n")
            file.flush()
            due += 0.1
            time.sleep(max(due - time.monotonic(), 0))


async def measure(seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        run = RunDir.create(Path(folder) / "run")
        lock.acquire(run)
        app = TmergeApp(probe=FakeProbe())
        delays, lateness = [], []
        async with app.run_test(size=(160, 50)) as pilot:
            pen = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.wizard", "--pen", str(run.path)])
            app.show_run(run.path)
            await pilot.pause(3.0)
            screen = app.screen
            assert isinstance(screen, RunScreen)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                side = screen.side
                start = time.perf_counter()
                app.post_message(Key("s", "s"))  # as the driver does
                while screen.side == side:
                    await asyncio.sleep(0)
                delays.append((time.perf_counter() - start) * 1e3)
                start = time.perf_counter()
                await asyncio.sleep(0.05)
                lateness.append((time.perf_counter() - start - 0.05) * 1e3)
            pen.kill()
            pen.wait()
            pairs = screen.state.pairs
        lock.release(run)
    delays.sort()
    return {
        "keys": len(delays),
        "key_p50_ms": round(statistics.median(delays), 1),
        "key_p95_ms": round(delays[int(len(delays) * 0.95)], 1),
        "key_p99_ms": round(delays[int(len(delays) * 0.99)], 1),
        "key_max_ms": round(delays[-1], 1),
        "loop_late_max_ms": round(max(lateness), 1),
        "pairs_seen": pairs,
    }


def main() -> None:
    if sys.argv[1:2] == ["--pen"]:
        write(RunDir(sys.argv[2]))
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    found = asyncio.run(measure(seconds))
    said = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout.split()
    found["import_ms"] = round(float(said[0]) * 1e3)
    assert said[1] == "False", "torch was imported"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
