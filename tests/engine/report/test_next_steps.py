"""What to change next, by hand; and every `--set` is one that a recipe takes."""

from __future__ import annotations

import pytest

from tests.engine.report.sample_results import make_measured, make_results, make_safety, score
from tmerge_tui.commands.batch import Options, change
from tmerge_tui.engine.report.next_steps import MOST, as_options, next_steps
from tmerge_tui.engine.report.verdict import judge
from tmerge_tui.recipe import make_recipe

NULL = {0.1: (0.0003, 0.0003, 0.0002)}
GAIN = {0.1: (-0.0030, 0.0003, 0.0010)}
HURT = {0.1: (0.0071, 0.0135, 0.0168)}


def results_of(curves, ratio=0.36, **fusion):
    results = make_results(curves, ratio)
    results["recipe"]["fusion"] |= fusion
    return results


def changes(results) -> list[list[str]]:
    return [step["set"] for step in next_steps(results)]


def test_the_rule_of_the_paper_moves_nothing_and_that_is_said_first():
    steps = next_steps(results_of(NULL, 3e-5, coupling="plan"))
    assert steps[0]["set"] == ["fusion.coupling=barycentric"] and "2.6e-05 of the target's norm" in steps[0]["text"]
    assert steps[1]["set"] == ["adaptation.compare=[sft,distill]"], "the source is better than the target"
    assert ["fusion.coupling=barycentric"] not in changes(results_of(NULL, 0.3, coupling="plan"))
    assert ["fusion.coupling=barycentric"] not in changes(results_of(NULL, 3e-5))


def test_a_source_that_knows_no_more_is_no_teacher():
    results = results_of(NULL)
    results["scores"] = [s for s in results["scores"] if s["model"] != "source"] + [score("source", None, 0.3)]
    steps = next_steps(results)
    assert steps[0]["set"] == ["adaptation.compare=[sft]"]
    assert [] in [step["set"] for step in steps] and any("Choose a source" in step["text"] for step in steps)


def test_what_is_lost_on_general_text_can_be_bound() -> None:
    results = make_results()
    rows = [score("target", None, 0.0), score("fused", results["verdict"]["alpha"], 0.02)]
    bound = ["select=validation", "evaluation.general.bound=0.01"]
    assert bound not in changes(results)
    assert bound in changes(results | {"general": {"rows": rows}})
    rows[1] = score("fused", results["verdict"]["alpha"], -0.02)
    assert bound not in changes(results | {"general": {"rows": rows}})


def test_a_gain_is_to_be_confirmed_and_not_tuned():
    assert changes(results_of(GAIN))[0] == ["seed=1", "fusion.alpha=0.1"]
    assert ["fusion.alpha=auto"] not in changes(results_of(GAIN))


def test_a_gain_of_a_model_that_talks_is_screened_before_it_is_handed_on():
    results = results_of(GAIN)
    assert ["evaluation.safety=true"] not in changes(results), "a base model has nothing to lose"
    results["models"]["target"]["chat_template"] = True
    assert ["evaluation.safety=true"] in changes(results)
    assert ["evaluation.safety=true"] not in changes(results | {"safety": make_safety()})


def test_a_merge_that_hurts_wants_weaker_strengths():
    assert ["fusion.alpha=[0.02,0.05]"] in changes(results_of(HURT))
    assert ["fusion.alpha=[0.02,0.05,0.1]"] in changes(results_of({0.3: HURT[0.1]}))


def test_what_was_done_already_is_not_advised():
    results = results_of(NULL, alpha=["auto"]) | make_measured()
    said = changes(results)
    assert ["fusion.alpha=auto"] not in said and ["adaptation.compare=[sft,distill]"] not in said
    assert ["adaptation.seeds=[0,1,2]"] in said
    results["adaptation"]["distillation"] = None
    assert ["adaptation.compare=[sft,distill]"] in changes(results)


def test_little_text_and_missing_placebos_are_named():
    results = results_of(NULL)
    results["contrasts"] = [c for c in results["contrasts"] if c["against"] == "shrink"]
    assert changes(results)[0] == ["evaluation.controls=[shrink,permuted]"]
    assert ["calibration.holdout=1600"] in changes(results_of(NULL))
    few = results_of(NULL)
    few["scores"] = [s | {"texts": 12} for s in few["scores"]]
    assert ["calibration.holdout=400"] in changes(few)


def test_a_broken_model_and_nothing_measured():
    results = results_of(NULL)
    results["scores"] = [score("target", None, 0.0), score("fused", 0.1, None)]
    results["verdict"] = judge(results["scores"], [])
    assert changes(results) == [["fusion.alpha=[0.02,0.05,0.1]"]]
    assert next_steps({"verdict": judge([], [])}) == []


@pytest.mark.parametrize("curves", [NULL, GAIN, HURT])
@pytest.mark.parametrize("more", [{}, make_measured()], ids=["merged", "trained"])
def test_every_option_is_one_that_a_recipe_takes(curves, more):
    steps = next_steps(results_of(curves, 3e-5, coupling="plan") | more)
    assert 0 < len(steps) <= MOST
    for step in steps:
        bare = {"source": "a/b", "target": "c/d", "calibration": {"path": "t.txt"}, "output": "out"}
        bare["fusion"] = {"alpha": [0.1]}
        asked = make_recipe(change(dict(bare), Options(changes=tuple(step["set"]))))
        assert (asked != make_recipe(bare)) == bool(step["set"])
        assert as_options(step).count("--set ") == len(step["set"])
