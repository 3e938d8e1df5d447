"""Passes for as long as they help. References: curves by hand, the model that is left, an uninterrupted training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.pair import make_pair, recipe_of
from tests.engine.training.test_arms import CPU, examples_of, load, options
from tests.tiny import make_model
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.engine.preflight.estimate import estimate
from tmerge_tui.engine.training.examples import collate, pad_blocks
from tmerge_tui.engine.training.patience import Patience, best_of, has_ended, rate_at, train_patiently
from tmerge_tui.engine.training.trainer import Step, Trained
from tmerge_tui.errors import NumericsError, RecipeError
from tmerge_tui.run_folder import RunDir

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "ended", "best"),
    [
        ([3.0, 2.0, 1.0], False, 2),
        ([3.0, 2.0, 2.0], False, 1),
        ([3.0, 2.0, 2.5, 2.1], True, 1),
        ([3.0, 2.0, 1.995, 1.991], True, 3),  # less than the smallest gain, twice
        ([3.0, 2.0, 1.995, 1.9], False, 3),
        ([3.0, 3.5, 2.9], False, 2),
        ([3.0, 3.5, 3.2], True, 2),  # the best one is never the start
        ([3.0, NAN, 2.0], False, 2),
        ([3.0, 2.0, NAN, NAN], True, 1),
        ([NAN, 2.0, 1.0], False, 2),
    ],
)
def test_it_ends_after_two_passes_without_a_gain(values: list[float], ended: bool, best: int) -> None:
    curve = list(enumerate(values))
    assert has_ended(curve, 2, 0.01) is ended and not has_ended(curve[:-1], 2, 0.01)
    assert best_of(curve) == (best, values[best])


def test_nothing_finite_is_an_error() -> None:
    with pytest.raises(NumericsError, match="finite validation score"):
        best_of([(0, 3.0), (1, NAN)])


def test_the_rate_rises_stays_and_falls_from_the_best_moment() -> None:
    assert [rate_at(step, 4) for step in (0, 1, 3, 4, 400)] == [0, 0.25, 0.75, 1, 1]
    assert [rate_at(step, 4, 10, 5) for step in (3, 10, 11, 14, 15, 16)] == pytest.approx([0.75, 1, 0.8, 0.2, 0, 0])


class Killed(Exception):
    pass


Attempt = Callable[..., tuple[Any, Trained, list[Step], list[tuple[int, float, str]]]]


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    folder = make_model(tmp_path_factory.mktemp("target") / "target", "qwen2")
    blocks = pad_blocks(examples_of(folder), 32)

    def told(model: Any) -> float:
        batch = collate(blocks[16:])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).item()

    def goes(out: Path, dies: Callable[[Step, list[Step]], bool] = lambda step, steps: False, **asked: Any) -> Any:
        model, steps, measured = load(folder), [], []

        def report(step: Step) -> None:
            steps.append(step)
            if dies(step, steps):
                raise Killed

        patience = Patience(told, 2, 0.001, lambda *point: measured.append(point))
        chosen = options(**{"epochs": "auto", "max_epochs": 24, "learning_rate": 0.03, "warmup": 0.5, **asked})
        figures = train_patiently(model, model, blocks[:16], chosen, 0, (), out, CPU, patience, report, pytest.fail)
        assert told(model) == min(value for _, value in [*figures.told[1:], (0, figures.decayed)])
        return model, figures, steps, measured

    return goes


@pytest.fixture(scope="module")
def straight(attempt: Attempt, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return attempt(tmp_path_factory.mktemp("straight"))


def test_what_is_left_is_best_on_validation_text_and_all_of_it_is_told(straight: Any) -> None:
    _, figures, steps, measured = straight
    places = [step for step, _ in figures.told]
    assert places == list(range(0, places[-1] + 1, 2)), "a pass has two steps"
    assert 4 < places[-1] < 40, "it stopped neither at once nor at the last moment that it was allowed"
    best, lowest = best_of(figures.told)
    assert best < places[-1] and measured[: len(places)] == [
        (step, value, "best" if value == min(v for _, v in figures.told[: i + 1]) and i else "")
        for i, (step, value) in enumerate(figures.told)
    ]
    fall = max(1, round(0.2 * best))
    assert measured[-1] == (best + fall, figures.decayed, "decayed" if figures.decayed < lowest else "")
    assert figures.steps == (best + fall if figures.decayed < lowest else best)
    assert [step for step, _ in figures.curve] == list(range(1, figures.steps + 1))
    again = next(i for i, step in enumerate(steps) if i and step.step <= steps[i - 1].step)
    assert {step.learning_rate for step in steps[1:again]} == {0.03}
    assert steps[again].step == best + 1 and len(steps) - again == fall
    rates = [step.learning_rate for step in steps[again:]]
    assert rates == pytest.approx([0.03 * (fall - i) / fall for i in range(fall)]), "the rate does not fall to 0"


@pytest.mark.parametrize("moment", ["in the second pass", "after the last pass", "in the fall"])
def test_resumed_anywhere_it_ends_in_the_same_weights(
    attempt: Attempt, straight: Any, tmp_path: Path, moment: str
) -> None:
    model, figures, whole, _ = straight
    again = next(i for i, step in enumerate(whole) if i and step.step <= whole[i - 1].step)
    stop = {"in the second pass": 3, "after the last pass": again + 1, "in the fall": len(whole)}[moment]
    with pytest.raises(Killed):
        attempt(tmp_path, lambda step, steps: len(steps) == stop)
    resumed, second, steps, _ = attempt(tmp_path)
    assert len(steps) < len(whole), "it began from the start"
    expected = dict(model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in resumed.named_parameters())
    assert (second.steps, second.tokens, second.told, second.decayed, second.curve) == (
        figures.steps, figures.tokens, figures.told, figures.decayed, figures.curve
    )  # fmt: skip


def test_no_more_passes_than_are_allowed(attempt: Attempt, tmp_path: Path) -> None:
    _, figures, steps, _ = attempt(tmp_path, max_epochs=2.5, learning_rate=1e-4)
    assert [step for step, _ in figures.told] == [0, 2, 4] and max(step.step for step in steps) == 5
    assert figures.steps == 5 and figures.decayed < figures.told[-1][1]


ADAPT = {
    "samples": 40, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 2, "learning_rate": 3e-3,
    "epochs": "auto", "max_epochs": 4, "compare": ["sft", "distill"], "checkpoints": 1,
}  # fmt: skip


def test_every_arm_goes_as_far_as_helps_it_and_the_report_has_the_curves(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    text = {"samples": 60, "validation": 8, "holdout": 8}
    recipe = recipe_of(pair, calibration=text, adaptation=ADAPT, output=str(tmp_path / "out"))
    folder, seen = RunDir.create(tmp_path / "out"), []
    pipeline.run(recipe, folder, seen.append)
    found = json.loads((folder.path / "report.json").read_text())["adaptation"]
    assert found["patience"] == {"passes": 2, "max_epochs": 4.0, "min_gain": 0.001, "steps_of_pass": 5}
    arms = ["adapted", "sft", "distilled"]
    assert [each["model"] for each in found["trainings"]] == arms
    measured = {each["model"]: dict(each["told"]) for each in found["trainings"]}
    assert measured["sft"][0] == measured["distilled"][0] != measured["adapted"][0]
    assert len({tuple(curve.items()) for curve in measured.values()}) == 3
    told = [e for e in seen if isinstance(e, events.Validated)]
    assert {e.method for e in told} == set(arms)
    for each in found["trainings"]:
        mine = [(e.step, e.bits_per_byte) for e in told if e.method == each["model"]]
        assert mine[:-1] == [tuple(point) for point in each["told"]] and mine[-1][1] == each["decayed"]
    page = (folder.path / "report.md").read_text()
    assert "at most 4 passes" in page and "distilled, seed 0: " in page and "validation-sft" in page
    before = {path: path.stat().st_mtime_ns for path in folder.state.iterdir()}
    pipeline.run(recipe, folder, seen.append)
    assert {path: path.stat().st_mtime_ns for path in folder.state.iterdir()} == before

    prepared = prepare(recipe)
    needs = prepared.estimate
    assert needs.bound and any("training at most 4 passes for each of 3 trainings" in note for note in needs.notes)
    facts = prepared.models.each(lambda party: party.facts)
    once = recipe.model_copy(update={"adaptation": recipe.adaptation.model_copy(update={"epochs": 1.0})})
    read = (100, 1000), 60
    assert estimate(recipe, facts, *read).work["training"] == 4 * estimate(once, facts, *read).work["training"]
    assert not estimate(once, facts, *read).bound


def test_it_finds_the_steps_itself(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave max_steps out"):
        recipe_of(make_pair(tmp_path), adaptation={"epochs": "auto", "max_steps": 3})
