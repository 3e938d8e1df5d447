"""Learning rate and weight from short trainings. References: walks on known functions, the numbers given by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pair import make_pair, recipe_of
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.training.search import RATES, WEIGHTS, downhill, rate_at
from tmerge_tui.run_folder import RunDir

ADAPT = {
    "samples": 40, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 1,
    "learning_rate": "auto", "distill_weight": "auto", "compare": ["sft", "distill"], "checkpoints": 1, "max_steps": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "lowest", "walked"),
    [
        (lambda place: abs(place - 2), 2, [0, 1, 2, 3]),
        (lambda place: abs(place), 0, [0, 1, -1]),
        (lambda place: abs(place + 1), -1, [0, 1, -1, -2]),
        (lambda place: -place, 4, [0, 1, 2, 3, 4]),
        (lambda place: place, -3, [0, 1, -1, -2, -3]),
        (lambda place: math.inf if place > -2 else 1.0 - place, -2, [0, 1, -1, -2, -3]),
        (lambda place: math.inf if place > 0 else -place, 0, [0, 1, -1]),
    ],
)
def test_the_walk_goes_downhill_and_ends(loss: Callable[[int], float], lowest: int, walked: list[int]) -> None:
    seen: list[int] = []

    def noted(place: int) -> float:
        seen.append(place)
        return loss(place)

    assert downhill(noted) == lowest and seen == walked and len(seen) <= RATES


def test_rates_are_on_a_geometric_grid_around_1e_4() -> None:
    assert [rate_at(place) for place in range(-3, 4)] == [3.2e-6, 1e-5, 3.2e-5, 1e-4, 3.2e-4, 1e-3, 3.2e-3]


def run(pair: dict[str, Any], output: Path, **adaptation: Any) -> tuple[dict[str, Any], list[events.Event]]:
    text = {"samples": 60, "validation": 10, "holdout": 10}
    recipe = recipe_of(pair, calibration=text, adaptation={**ADAPT, **adaptation}, output=str(output))
    folder, seen = RunDir.create(output), []
    pipeline.run(recipe, folder, seen.append)
    announced = [s["name"] for s in next(e for e in seen if isinstance(e, events.RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == announced
    return json.loads((folder.path / "report.json").read_text())["adaptation"], seen


def test_both_are_chosen_by_validation_loss_and_are_what_is_trained_with(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    found, seen = run(pair, tmp_path / "out")
    search = found["search"]
    rates = {each["learning_rate"]: each["loss"] for each in search["trials"] if each["weight"] is None}
    weights = {each["weight"]: each["loss"] for each in search["trials"] if each["weight"] is not None}
    assert 3 <= len(rates) <= RATES and search["learning_rate"] == min(rates, key=lambda rate: rates[rate])
    assert tuple(weights) == WEIGHTS and search["distill_weight"] == min(weights, key=lambda weight: weights[weight])
    assert {each["learning_rate"] for each in search["trials"] if each["weight"] is not None} == {
        search["learning_rate"]
    }
    assert len(set(rates.values()) | set(weights.values())) == len(search["trials"])
    assert search["steps"] == 3 and search["texts"] == 10
    assert "Chosen by trainings of 3 steps on 10 validation texts" in (tmp_path / "out" / "report.md").read_text()
    state = RunDir(tmp_path / "out").state
    assert len(list(state.glob("search-*.json"))) == len(search["trials"]) and not list(state.glob("*-search-*"))

    before = {path: path.stat().st_mtime_ns for path in state.iterdir()}
    again, seen = run(pair, tmp_path / "out")
    assert again["search"] == search and {path: path.stat().st_mtime_ns for path in state.iterdir()} == before
    numbers = {"learning_rate": search["learning_rate"], "distill_weight": search["distill_weight"]}
    given, seen = run(pair, tmp_path / "out", **numbers)
    assert given["search"] is None and given["rows"] == found["rows"]
    assert not [e for e in seen if isinstance(e, events.TrainingStep)], "given as numbers they are other trainings"
