"""What is damaged on disk: a checkpoint costs steps and a warning, a finished training is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.engine.pair import make_pair, recipe_of
from tests.engine.training.test_arms import CPU, examples_of, load, options
from tests.tiny import make_model
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.training.checkpoints import STATE, WEIGHTS
from tmerge_tui.engine.training.examples import pad_blocks
from tmerge_tui.engine.training.trainer import Step, Trained, train
from tmerge_tui.errors import StorageError
from tmerge_tui.run_folder import RunDir

Attempt = Callable[..., tuple[Any, Trained, list[str]]]
PLAIN: dict[str, Any] = {"checkpoints": 9}
MEASURED: dict[str, Any] = {"learning_rate": 0.3, "epochs": 8, "schedule": "constant", "patience": 40}
WORSE = 7  # a step of it at which the best checkpoint so far is not the last one


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    folder = make_model(tmp_path_factory.mktemp("target") / "target", "qwen2")
    blocks = pad_blocks(examples_of(folder), 32)

    def goes(out: Path, asked: dict[str, Any], stop: int | None = None) -> tuple[Any, Trained, list[str]]:
        def report(step: Step) -> None:
            if step.step == stop:
                raise Killed

        model, said = load(folder), []
        split = (blocks[:20], blocks[20:]) if "patience" in asked else (blocks, [])
        trained = train(model, *split, options(**asked), 0, (), out, CPU, report, said.append)
        return model, trained, said

    return goes


@pytest.fixture(scope="module")
def straight(attempt: Attempt, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Trained, list[str]]:
    return attempt(tmp_path_factory.mktemp("straight"), PLAIN)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE])
@pytest.mark.parametrize("damage", [cut_off, Path.unlink])
def test_a_damaged_checkpoint_is_not_taken_up(
    attempt: Attempt, straight: Any, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, PLAIN, 5)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    damage(checkpoint / name)
    model, trained, said = attempt(tmp_path, PLAIN)
    if damage is Path.unlink and name in (STATE, "rng_state.pth"):  # stopped while writing; nothing random is left
        assert said == []
    else:
        (message,) = said
        assert str(checkpoint / name) in message and "not taken up" in message
    assert same(model, straight[0])
    assert (trained.steps, trained.tokens) == (straight[1].steps, straight[1].tokens)


def test_one_whose_best_is_damaged_is_not_taken_up(attempt: Attempt, tmp_path: Path) -> None:
    model, _, _ = attempt(tmp_path / "straight", MEASURED)
    with pytest.raises(Killed):
        attempt(tmp_path / "broken", MEASURED, WORSE)
    best, _ = sorted((tmp_path / "broken").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    moved = (tmp_path / "broken").rename(tmp_path / "moved")
    again, _, said = attempt(moved, MEASURED)
    assert said == [] and same(again, model), "the best one is found where the folder has gone"
    with pytest.raises(Killed):
        attempt(tmp_path / "broken", MEASURED, WORSE)
    cut_off(best / WEIGHTS)
    again, _, said = attempt(tmp_path / "broken", MEASURED)
    assert len(said) == 2 and all(str(best / WEIGHTS) in message for message in said)
    assert same(again, model)


def test_a_damaged_training_is_named_and_made_again_once_it_is_gone(tmp_path: Path) -> None:
    asked = {
        "start": "target", "samples": 20, "block_length": 32, "batch_size": 4, "max_steps": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    recipe = recipe_of(make_pair(tmp_path), adaptation=asked)
    run = RunDir.create(recipe.output)
    pipeline.run(recipe, run, lambda event: None)
    (piece,) = run.state.glob("trained-*.safetensors")
    whole = piece.read_bytes()
    for damaged in (whole[:-1], whole[:9], b"", b"\xff" * len(whole)):
        piece.write_bytes(damaged)
        with pytest.raises(StorageError, match="delete that file and run again") as failure:
            pipeline.run(recipe, run, lambda event: None)
        assert str(piece) in failure.value.found
    piece.unlink()
    pipeline.run(recipe, run, lambda event: None)
    again, tensors = (safetensors.torch.load(one) for one in (piece.read_bytes(), whole))
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
