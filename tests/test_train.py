"""Training under a launcher. Reference: one process with the same batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.engine.pair import make_pair
from tmerge_tui.commands.train import main
from tmerge_tui.engine import pipeline
from tmerge_tui.errors import StorageError
from tmerge_tui.events import Emit
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import lock

ROOT = Path(__file__).parents[1]


def recipe(folder: Path, name: str, **adaptation: Any) -> Path:
    path = folder / f"{name}.yaml"
    mapping = {**make_pair(folder), "output": str(folder / name)}
    path.write_text(yaml.safe_dump({**mapping, "adaptation": adaptation} if adaptation else mapping))
    return path


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Every step takes all 40 samples, so that it does not matter who gets which."""
    options = {
        "samples": 40, "block_length": 32, "packing": "pad", "accumulation": 1, "learning_rate": 1e-3, "max_steps": 3,
        "checkpoints": 1, "compare": ["distill"],
    }  # fmt: skip
    one = recipe(tmp_path, "one", batch_size=40, **options)
    two = recipe(tmp_path, "two", batch_size=20, **options)
    assert main([str(one)]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    surroundings = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    launched = subprocess.run(
        [*command, "-m", "tmerge_tui.commands.train", str(two)],
        cwd=ROOT, env=surroundings, capture_output=True, text=True,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr[-3000:]
    target = load_file(tmp_path / "target" / "model.safetensors")
    for method in ("adapted", "distilled"):
        found = [next((tmp_path / name / "state").glob(f"trained-{method}-*")) for name in ("one", "two")]
        ours, theirs = map(load_file, found)
        # on average: where a gradient is nothing but rounding, Adam still makes a whole step of it
        gap = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours]).mean()
        moved = torch.cat([(ours[name] - target[name]).abs().flatten() for name in ours]).mean()
        assert gap < 0.01 * moved, method


def test_a_run_that_goes_on_is_refused_and_its_lock_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "held", max_steps=1)
    run = RunDir.create(tmp_path / "held")
    parent = psutil.Process(os.getppid())
    run.lock.write_text(json.dumps({"pid": parent.pid, "started": parent.create_time(), "host": socket.gethostname()}))
    held = run.lock.read_bytes()
    assert main([str(path)]) == 1
    assert f"a run is going on there (process {parent.pid})" in capsys.readouterr().err
    assert run.lock.read_bytes() == held and not list(run.state.iterdir())


@pytest.mark.parametrize("fails", [True, False])
def test_the_lock_is_held_while_it_trains_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    path = recipe(tmp_path, "held", max_steps=1)
    holders = []

    def work(recipe: Recipe, run: RunDir, emit: Emit, until: str) -> None:
        holders.append(lock.holder(run))
        if fails:
            raise StorageError("the disk is full")

    monkeypatch.setattr(pipeline, "run", work)
    assert main([str(path)]) == (1 if fails else 0)
    assert [holder.pid for holder in holders if holder] == [os.getpid()] * (1 if fails else 2)
    assert lock.holder(RunDir(tmp_path / "held")) is None


def test_a_recipe_without_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe(tmp_path, "plain"))]) == 2
    assert "no section adaptation" in capsys.readouterr().err
    assert main([]) == 2
