"""What a run takes: from the real texts, with everything it does, and against the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_model
from tmerge_tui import machine, shipped
from tmerge_tui.engine.preflight import speed
from tmerge_tui.engine.preflight.estimate import estimate
from tmerge_tui.engine.preflight.room import in_memory
from tmerge_tui.engine.preflight.scouted import Pace
from tmerge_tui.engine.preflight.speed import Speed, timed
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.pair import Pair
from tmerge_tui.quantities import size
from tmerge_tui.recipe import Recipe, make_recipe
from tmerge_tui.recipe.demo import demo_mapping
from tmerge_tui.recipe.starts import NAMES

READ = (30, 270)  # rows, tokens of 30 texts
RECORDED = 80.4  # seconds of the demo on two shared cores, whose speed that day was:
MEASURED = Speed(53.8e9, 95.9e9, 56.3e9)
# The recommended start on 400 texts of the demo: (rows, tokens) read, seconds for 1,000 tokens that scout saw a little
# later, and the seconds that the run took. The demo, scouted on a machine at three times its load, is not among these:
# 204 seconds were told and it took 312, 1.53 times as long.
READ_THERE = (400, 15_340)
PACES = Pair(target=Pace(0.0328, 0.1288), source=Pace(0.0883, 0.4163))
TRAINED = 106.0


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


def test_the_size_of_the_teacher_cache_is_told(pair) -> None:
    """12 bytes a position and 4 an event; 270 tokens of 30 texts, 20 of them trained on."""
    taught = {"start": "target", "teacher": {"events": 10}, "samples": 20}
    plain = estimate(recipe(adaptation={"start": "target", "samples": 20}), pair, READ, 30)
    once = estimate(recipe(adaptation=taught), pair, READ, 30)
    thrice = estimate(recipe(adaptation={**taught, "controls": ["self", "permuted"]}), pair, READ, 30)
    cache = 180 * (12 + 4 * 10)
    assert once.disk_bytes - plain.disk_bytes == cache
    assert any(f"what teachers say {size(cache)} at most" in note for note in once.notes)
    weights = 2 * 4 * pair.target.parameters  # of two more trainings
    assert thrice.disk_bytes - once.disk_bytes == cache + weights
    assert "what teachers say" not in "".join(plain.notes)


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


def test_what_else_is_measured_is_counted(pair) -> None:
    plain = estimate(recipe(), pair, READ, 30)
    general = estimate(recipe(evaluation={"general": {"samples": 100}}), pair, READ, 30)
    twice = estimate(recipe(evaluation={"general": {"samples": 200}}), pair, READ, 30)
    assert twice.work["general text"] == 2 * general.work["general text"] > 0 == plain.work["general text"]
    bound = {"samples": 100, "bound": 0.1, "validation": 50}
    bounded = estimate(recipe(evaluation={"general": bound}, select="validation"), pair, READ, 30)
    assert bounded.work["general text"] > general.work["general text"]
    found = estimate(recipe(evaluation={"attribution": True}), pair, READ, 30)
    assert found.work["attribution"] == pytest.approx(plain.work["measuring"]), "the hold-out once more, by every model"
    assert found.steps["batches"] > plain.steps["batches"]


def test_the_safety_screen_is_counted_where_there_is_a_template(pair, tmp_path: Path) -> None:
    talking = pair.each(lambda facts: replace(facts, chat_template=True))
    asked = {"evaluation": {"safety": {}}}
    assert estimate(recipe(**asked), pair, READ, 30).work["safety"] == 0
    plain, screened = (estimate(recipe(**given), talking, READ, 30) for given in ({}, asked))
    assert screened.work["safety"] > 0 == plain.work["safety"]
    assert screened.steps["batches"] > plain.steps["batches"]
    longer = estimate(recipe(evaluation={"safety": {"max_new_tokens": 64}}), talking, READ, 30)
    assert longer.work["safety"] > screened.work["safety"]
    base = Pair(target=talking.target, source=pair.source)
    alone = estimate(recipe(evaluation={"safety": {}, "source": False}), talking, READ, 30)
    assert estimate(recipe(**asked), base, READ, 30).work["safety"] == alone.work["safety"] < screened.work["safety"]
    wrong = recipe(evaluation={"safety": {"path": str(tmp_path / "none.jsonl")}})
    assert estimate(wrong, talking, READ, 30).work["safety"] == 0


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


def test_a_run_with_training_takes_what_was_recorded_within_half(monkeypatch: pytest.MonkeyPatch) -> None:
    made = best(demo_mapping(shipped.folder() / "demo"))
    target, source = (read_facts(Path(one.model), one.model, False) for one in (made.target, made.source))
    monkeypatch.setattr(speed, "measure", lambda *given: MEASURED)
    needs = estimate(made, Pair(target=target, source=source), READ_THERE, READ_THERE[0])
    batch = made.calibration.batch_size * made.calibration.max_length
    told = timed(needs, source, target, batch, torch.device("cpu"), PACES)
    assert told.scouted and told.seconds is not None and TRAINED / 1.5 < told.seconds < TRAINED * 1.5


def best(demo: dict[str, Any]) -> Recipe:
    """The recommended start on 400 texts of the demo, as it was run."""
    calibration = {"path": demo["calibration"]["path"], "samples": 400, "holdout": 200, "max_length": 128}
    mapping: dict[str, Any] = {"source": demo["source"], "target": demo["target"], "calibration": calibration}
    for name, value in {**NAMES["best"].says, "fusion.k": 32}.items():
        *path, leaf = name.split(".")
        at = mapping
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = value
    return make_recipe({**mapping, "output": "o"})


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
