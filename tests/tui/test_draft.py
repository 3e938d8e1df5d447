"""The draft: what was typed becomes a recipe, and nothing is lost or invented on the way."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmerge_tui.recipe import make_recipe
from tmerge_tui.tui import draft as drafts
from tmerge_tui.tui.draft import Draft, demo_draft, options, step_problems, suggest_output

BARE = {"source": "org/a", "target": "org/b", "calibration": {"path": "t.txt"}, "output": "runs/x"}
BASE = {"source.model": "org/a", "target.model": "org/b", "calibration.path": "t.txt", "output": "runs/x"}


def test_a_draft_of_the_defaults_is_the_default_recipe() -> None:
    assert Draft(BASE).recipe() == make_recipe(BARE)


def test_every_option_has_a_kind_and_its_default_survives_typing() -> None:
    draft = Draft(BASE)
    for name in options():
        if name in BASE or drafts.default(name) is None:
            continue
        draft.set(name, drafts.as_text(drafts.default(name)) if drafts.kind(name) == "text" else drafts.default(name))
    assert draft.values == BASE, "typing a default is choosing nothing"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True))
def test_a_typed_list_of_alphas(alphas: list[float]) -> None:
    draft = Draft(BASE)
    draft.set("fusion.alpha", ", ".join(repr(a) for a in alphas))
    assert draft.recipe().fusion.alpha == tuple(alphas)


def test_empty_means_all_where_none_is_a_value() -> None:
    draft = Draft(BASE)
    draft.set("fusion.r", "")
    assert draft.recipe().fusion.r is None
    draft.set("fusion.r", "128")
    assert "fusion.r" not in draft.values
    draft.set("evaluation.controls", [])
    assert draft.recipe().evaluation.controls == ()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("fusion.k", "many", "expected a whole number"),
        ("transport.epsilon", "-1", "more than 0"),
        ("memory", "8 apples", "is not a size"),
        ("device", "toaster", "expected"),
        ("transport.projections", [], "expected"),
    ],
)
def test_problems_name_their_field(name: str, value: object, problem: str) -> None:
    draft = Draft(BASE)
    draft.set(name, value)
    found = draft.problems()
    assert len(found) >= 1
    assert any(problem in p for p in found), found


def test_steps_know_what_is_missing() -> None:
    draft = Draft()
    assert step_problems(draft, "models") == ["choose a source model", "choose a target model"]
    assert step_problems(draft, "data") == ["choose a text file or a data set"]
    assert step_problems(draft, "method") == []
    draft.set("source.model", "org/a")
    assert step_problems(draft, "models") == ["choose a target model"]
    draft.set("method", "ls_merge")
    draft.set("ls_merge.epochs", "many")
    assert any(problem.startswith("ls_merge.epochs") for problem in step_problems(draft, "method"))


def test_the_sections_of_all_methods_that_are_compared_are_offered() -> None:
    draft = Draft(BASE)
    assert not draft.offers("ls_merge.epochs") and not draft.offers("ot_fusion.solver")
    draft.set("compare_methods", ["transport_merge", "ls_merge"])
    draft.set("ls_merge.epochs", "7")
    assert draft.offers("ls_merge.epochs") and not draft.offers("ot_fusion.solver")
    made = draft.recipe()
    assert made.compare_methods == ("transport_merge", "ls_merge") and made.ls_merge.epochs == 7
    draft.set("compare_methods", ["ls_merge"])
    assert any(problem.startswith("compare_methods") for problem in step_problems(draft, "method"))


def test_dump_and_load() -> None:
    draft = Draft(BASE)
    draft.go("method")
    again = Draft.load({**draft.dump(), "later": "versions may add"})
    assert (again.values, again.step, again.reached) == (BASE, "method", "method")
    assert Draft.load({"values": {"gone.option": 1}, "step": 7}).dump() == Draft().dump()


def test_a_recipe_becomes_a_draft_and_back() -> None:
    recipe = demo_draft().recipe()
    assert Draft.from_recipe(recipe).recipe() == recipe
    assert recipe.fusion.alpha == (0.02, 0.05, 0.1, 0.3)


def test_training_and_questions_of_a_recipe_survive_the_draft() -> None:
    """Reference: the recipe itself, through the file the wizard keeps its draft in."""
    recipe = make_recipe(
        {
            "source": "org/a", "target": "org/b", "calibration": {"path": "t.txt"}, "output": "runs/x",
            "adaptation": {"epochs": 2, "seeds": [1, 2], "compare": ["sft"], "hints": {"sides": ["q.out"]}},
            "evaluation": {
                "choices": ["/a.jsonl", {"path": "/b.jsonl", "cause": "because"}], "tasks": ["piqa"],
                "general": {"texts": "/other.txt", "tasks": "general", "bound": 0.01}, "attribution": True,
            },
            "select": "validation",
        }
    )  # fmt: skip
    draft = Draft.load(json.loads(json.dumps(Draft.from_recipe(recipe).dump())))
    assert draft.recipe() == recipe
    draft.set("adaptation.hints", False)
    made = draft.recipe().adaptation
    assert made is not None and made.hints is None and made.seeds == (1, 2)
    draft.set("evaluation.attribution", False)
    draft.set("evaluation.general.tasks", "general")
    measured = draft.recipe().evaluation
    assert measured.attribution is None and measured.general is not None and len(measured.general.tasks) == 5
    bare = make_recipe({**BARE, "adaptation": {}})
    assert Draft.from_recipe(bare).recipe() == bare, "every default is not the same as off"


def test_a_teacher_with_nothing_but_defaults_survives_the_draft() -> None:
    """As the demo has it: `teacher: {}` distils into the result itself."""
    taught = make_recipe({**BARE, "adaptation": {"teacher": {}, "compare": ["distill"]}})
    draft = Draft.from_recipe(taught)
    assert draft.recipe() == taught and draft.get("adaptation.teacher") is True
    draft.set("adaptation.teacher", False)
    adaptation = draft.recipe().adaptation
    assert adaptation is not None and adaptation.teacher is None and adaptation.distilled


def test_the_suggested_output_is_free(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    draft = Draft({"source.model": "org/Big-8B", "target.model": "/models/small"})
    assert suggest_output(draft) == "runs/big-8b-into-small"
    (tmp_path / "runs" / "big-8b-into-small").mkdir(parents=True)
    assert suggest_output(draft) == "runs/big-8b-into-small-2"
