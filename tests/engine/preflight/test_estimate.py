"""What a run takes: from the real texts, with everything it does, and against the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_model
from tmerge_tui import machine, shipped
from tmerge_tui.engine.preflight import speed
from tmerge_tui.engine.preflight.estimate import estimate
from tmerge_tui.engine.preflight.room import in_memory
from tmerge_tui.engine.preflight.speed import Speed, timed
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe, make_recipe
from tmerge_tui.recipe.demo import demo_mapping

READ = (30, 270)  # rows, tokens of 30 texts
RECORDED = 80.4  # seconds of the demo on two shared cores, whose speed that day was:
MEASURED = Speed(53.8e9, 95.9e9, 56.3e9)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair[ModelFacts]:
    folder = tmp_path_factory.mktemp("pair")
    make_model(folder / "source", "llama", layers=3)
    make_model(folder / "target", "qwen2")
    return Pair(
        target=read_facts(folder / "target", "target", False), source=read_facts(folder / "source", "source", False)
    )


def recipe(**sections: Any) -> Recipe:
    calibration = {"path": "t.txt", **sections.pop("calibration", {})}
    fixed = {"source": "a/b", "target": "c/d", "calibration": calibration, "fusion": {"alpha": 0.1}, "output": "o"}
    return make_recipe({**fixed, **sections})


def test_the_text_that_is_there_counts_and_not_the_samples_asked_for(pair) -> None:
    asked, given = estimate(recipe(), pair), estimate(recipe(), pair, READ, 30)
    assert asked.bound and not given.bound
    assert given.flops < asked.flops / 50
    more = estimate(recipe(calibration={"samples": 20_000}), pair, READ, 30)
    assert more.work == given.work, "samples beyond the text change nothing"


def test_more_held_out_is_more_to_measure(pair) -> None:
    few, many = (estimate(recipe(calibration={"holdout": n, "samples": 4 * n}), pair, READ, 30) for n in (100, 400))
    assert many.work["measuring"] == 4 * few.work["measuring"]


def test_training_benchmarks_and_prompts_are_counted(pair, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("{}\n" * 50)
    plain = estimate(recipe(), pair, READ, 30)
    assert {name for name, flops in plain.work.items() if flops} == {"reading", "transport", "measuring"}
    once = estimate(recipe(adaptation={}), pair, READ, 30)
    thrice = estimate(recipe(adaptation={"epochs": 3, "compare": ["sft", "distill"]}), pair, READ, 30)
    assert thrice.work["training"] == pytest.approx(9 * once.work["training"]) and once.work["training"] > 0
    assert thrice.work["teaching"] > 0 == once.work["teaching"]
    assert thrice.memory["teacher"] > 0 == once.memory["teacher"]
    asked = estimate(recipe(evaluation={"choices": [str(questions)], "prompts": ["a"]}), pair, READ, 30)
    assert asked.work["benchmarks"] > 0 < asked.work["prompts"]
    tasks = estimate(recipe(evaluation={"tasks": ["piqa", "arc_easy"]}), pair, READ, 30)
    assert tasks.work["benchmarks"] > 10 * asked.work["benchmarks"]


def test_what_does_not_fit_is_refused_and_what_is_streamed_is_said(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = estimate(recipe(adaptation={"compare": ["distill"]}), pair, READ, 30)
    cpu = torch.device("cpu")
    assert in_memory(recipe(), needs, cpu) == ([], [])
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 40, needs.memory["training"] - 1))
    (problem,), _ = in_memory(recipe(), needs, cpu)
    assert problem.startswith("adaptation: training takes about") and "method: lora" in problem
    problems, (note,) = in_memory(recipe(memory=needs.memory["weights"] - 1), needs, torch.device("cpu"))
    assert "streamed layer by layer" in note and problems == [problem]


def test_the_demo_takes_what_was_recorded_within_half(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = shipped.folder() / "demo"
    made = make_recipe({**demo_mapping(demo), "adaptation": None, "select": "recipe"})
    every = made.evaluation.model_copy(update={"controls_at": "all"})
    made = made.model_copy(update={"evaluation": every})  # as it was that day
    target, source = (read_facts(Path(one.model), one.model, False) for one in (made.target, made.source))
    models = Pair(target=target, source=source)
    monkeypatch.setattr(speed, "measure", lambda *given: MEASURED)
    needs = timed(estimate(made, models, (1000, 26_616), 1000), source, target, 4096, torch.device("cpu"))
    assert needs.seconds is not None and RECORDED / 1.5 < needs.seconds < RECORDED * 1.5


def test_the_speed_is_measured_in_the_models_own_shapes() -> None:
    found = speed.measure(((64, 32), (32, 64)), ((16, 16),), 128, "cpu")
    assert found.source > 0 and found.target > 0 and found.memory > 0


def test_ot_fusion_is_priced_by_its_own_solves(pair) -> None:
    def of(**options: Any) -> Any:
        return estimate(recipe(method="ot_fusion", ot_fusion=options), pair, READ, 30)

    exact, weights = of(), of(cost="weights")
    assert weights.work["reading"] == 0 < exact.work["reading"]
    assert weights.disk_bytes < exact.disk_bytes, "no activations are kept"
    assert of(solver="sinkhorn").touched < exact.touched
    assert of(residual="mean").steps["pairs"] > exact.steps["pairs"]
    # every tensor of the target in fp32, and the placebo's
    assert of(residual="identity").disk_bytes > 2 * 4 * pair.target.parameters
    assert of(depth="plan").work["transport"] > exact.work["transport"]
