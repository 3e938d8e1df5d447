"""Runs a recipe, killing itself with SIGKILL in the middle of each stage in turn, and compares what resuming gives.

    python -m tests.engine.killed PAIR.json FOLDER

Children are forked, so that the libraries are imported once; nothing of torch has run in the parent by then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tests.engine.pair import recipe_of
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.run_folder import RunDir


def attempt(mapping: dict[str, Any], output: Path, victim: str | None) -> int:
    """The wait status of a forked run; `victim` is the stage in which it kills itself."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        torch.set_num_threads(1)
        current = ""

        def emit(event: events.Event) -> None:
            nonlocal current
            if isinstance(event, events.StageStarted):
                current = event.stage
            middle = isinstance(event, (events.StageProgressed, events.Metric, events.PairSolved))
            if victim is not None and current == victim and middle:
                os.kill(os.getpid(), signal.SIGKILL)

        recipe = recipe_of(mapping, output=str(output))
        pipeline.run(recipe, RunDir.create(output), emit)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def main(pair: str, folder: str) -> int:
    mapping = json.loads(Path(pair).read_text())
    straight = Path(folder) / "undisturbed"
    assert attempt(mapping, straight, None) == 0, "the undisturbed run failed"
    expected = (straight / "model" / "model.safetensors").read_bytes()
    scores = json.loads((straight / "report.json").read_text())["scores"]
    output = Path(folder) / "disturbed"
    for stage, _, _ in pipeline.stages_of(recipe_of(mapping)):  # one folder: every kill finds what the one before left
        status = attempt(mapping, output, stage)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{stage}: not killed: {status}"
        assert not (output / "report.json").exists(), f"{stage}: finished all the same"
        print("killed", stage, flush=True)
    assert attempt(mapping, output, None) == 0, "the resumed run failed"
    assert (output / "model" / "model.safetensors").read_bytes() == expected, "other tensors after resuming"
    assert json.loads((output / "report.json").read_text())["scores"] == scores, "other scores after resuming"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
