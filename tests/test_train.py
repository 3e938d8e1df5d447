"""Training under a launcher. Reference: one process with the same batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.engine.pair import make_pair
from tmerge_tui.commands.train import main

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
        cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=200,
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


def test_a_recipe_without_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe(tmp_path, "plain"))]) == 2
    assert "no section adaptation" in capsys.readouterr().err
    assert main([]) == 2
