"""Optional packages that are not installed: found by the check, with a message that names the extra.

The import is blocked as Python itself allows it: None in sys.modules.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from textual.widgets import Static

from tests.engine.pair import make_pair, recipe_of
from tests.tui.doubles import FakeProbe, settle
from tmerge_tui import cli, extras
from tmerge_tui.engine.evaluation import lm_eval_harness
from tmerge_tui.engine.preflight.check import check
from tmerge_tui.engine.training import fit, tune
from tmerge_tui.errors import ExtraMissing
from tmerge_tui.machine import Memory
from tmerge_tui.recipe import options
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.recipe.evaluation import Evaluation
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.worker.helper import Request
from tmerge_tui.worker.questions import ANSWERS

ALL = sorted(extras.EXTRAS)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without extras."""
    for extra in extras.EXTRAS.values():
        monkeypatch.setitem(sys.modules, extra.module, None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", ALL)
def test_a_missing_extra_is_named_with_its_command(name: str, bare: None) -> None:
    assert not extras.present(name)
    with pytest.raises(ExtraMissing) as failure, extras.imported("a choice", name):
        raise AssertionError("the block must not run")
    error = failure.value
    assert error.exit_code == 2
    assert error.found == f"a choice: the package {extras.EXTRAS[name].package} is needed and is not installed"
    assert f"the extra {name} (" in error.expected
    assert error.hint == f'pip install "tmerge-tui[{name}]"'


@pytest.mark.parametrize("name", ALL)
def test_the_binary_sends_to_the_python_package(name: str, bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    told = extras.how_to_get(name)
    assert told.startswith(f"this single file comes without {extras.EXTRAS[name].package}; ")
    assert f'pip install "tmerge-tui[{name}]"' in told


def test_a_broken_package_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extra.py").write_text("from os import there_is_no_such_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(extras.EXTRAS, "lora", extras.Extra("broken_extra", "peft", "adapters"))
    assert extras.present("lora")
    broken = r"is needed and is broken here .*there_is_no_such_name"
    with pytest.raises(ExtraMissing, match=broken), extras.imported("a choice", "lora"):
        import_module("broken_extra")


def test_options_that_need_extras_exist() -> None:
    known = dict(options())
    for option, (extra, value) in extras.NEEDED_BY.items():
        assert option in known and extra in extras.EXTRAS
        assert extras.needed_by(option, value or ("anything",)) == extra
        assert extras.needed_by(option, None) == extras.needed_by(option, ()) == ""
    assert extras.needed_by("adaptation.method", "full") == extras.needed_by("fusion.alpha", 0.1) == ""


def test_the_check_finds_them_before_any_work(pair: dict[str, Any], tmp_path: Path, bare: None) -> None:
    chosen: dict[str, Any] = {"evaluation": {"tasks": ["arc_easy"]}, "adaptation": {"method": "lora"}}
    problems = check(recipe_of(pair, output=str(tmp_path / "run"), **chosen))
    assert [problem.splitlines()[0] for problem in problems] == [
        "evaluation.tasks: the package lm-eval is needed and is not installed",
        "adaptation.method: lora: the package peft is needed and is not installed",
    ]
    for name, problem in zip(("eval", "lora"), problems, strict=True):
        assert f'next: pip install "tmerge-tui[{name}]"' in problem
    assert check(recipe_of(pair, output=str(tmp_path / "run"), adaptation={"method": "full"})) == []


def test_the_check_knows_what_auto_will_choose(
    pair: dict[str, Any], tmp_path: Path, bare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the memory that training takes, 16 bytes a parameter of the source."""
    recipe = recipe_of(
        pair, output=str(tmp_path / "run"), adaptation={"compare": ["distill"], "teacher": {"tune": "auto"}}
    )
    assert check(recipe) == [], "all of it fits, and that needs no package"
    monkeypatch.setattr(tune, "machine", SimpleNamespace(memory=lambda: Memory(2**20, 0, None)))
    (problem,) = check(recipe)
    assert problem.startswith("adaptation.teacher.tune: auto, which takes low-rank updates for ")
    assert "the package peft is needed and is not installed" in problem


def test_a_missing_extra_is_said_beside_a_missing_model(pair: dict[str, Any], tmp_path: Path, bare: None) -> None:
    problems = check(recipe_of(pair, source=str(tmp_path / "none"), evaluation={"tasks": ["arc_easy"]}))
    assert len(problems) == 2 and "lm-eval" in problems[0]


def test_what_imports_them_says_so_too(bare: None) -> None:
    with pytest.raises(ExtraMissing, match="peft"):
        fit._with_lora(None, Adaptation(method="lora"), {"a.weight": []})
    with pytest.raises(ExtraMissing, match="lm-eval"):
        lm_eval_harness.run_task(None, None, "arc_easy", Evaluation(), 0)


def test_the_command_line_says_it_and_ends_with_2(
    pair: dict[str, Any],
    tmp_path: Path,
    bare: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**pair, "evaluation": {"tasks": ["arc_easy"]}, "output": str(tmp_path / "run")}))
    monkeypatch.setattr(sys, "argv", ["tmerge", "check", str(recipe)])
    assert cli.main() == 2
    assert 'pip install "tmerge-tui[eval]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_helper_process_knows_what_is_missing(bare: None) -> None:
    assert ANSWERS["extras"](Request(1, "extras", {})) == {name: extras.how_to_get(name) for name in extras.EXTRAS}


async def test_the_wizard_says_it_at_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    probe = FakeProbe()
    probe.answers["extras"] = {"eval": "install it", "lora": "install that"}
    app = TmergeApp(probe=probe)

    def below(name: str) -> str:
        field = next(field for field in app.screen.query(OptionField) if field.option == name)
        return str(field.query_one(".field-help", Static).render())

    async with app.run_test(size=(120, 50)) as pilot:
        app.draft.set("evaluation.tasks", ["arc_easy"])
        app.draft.set("adaptation", True)
        app.goto("method")
        await settle(pilot)
        assert below("evaluation.tasks") == "! needs the extra eval: install it"
        assert "needs the extra" not in below("adaptation.method")
        field = next(field for field in app.screen.query(OptionField) if field.option == "adaptation.method")
        field.query_one("OneOf").focus()
        await pilot.press("right")
        await settle(pilot)
        assert below("adaptation.method") == "! needs the extra lora: install that"
        await pilot.press("left")
        await settle(pilot)
        assert "needs the extra" not in below("adaptation.method")
