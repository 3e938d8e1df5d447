"""Packages and extras: absent, too old, optional."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable

import pytest

from tmerge_tui import bundle, edition, extras
from tmerge_tui.commands.doctor import packages
from tmerge_tui.commands.doctor.finding import Level

WANTED = ["torch>=2.6", "transformers<6,>=5.10", 'peft>=0.19; extra == "lora"', 'colorama>=9; sys_platform == "win32"']


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**versions: str) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: WANTED)

    return put


def test_all_is_well(has: Callable[..., None]) -> None:
    has(torch="2.13.0+cpu", transformers="5.23.0")
    (told,) = packages.installed()
    assert told.found == "torch 2.13.0+cpu, transformers 5.23.0" and told.level is Level.OK


def test_one_is_missing(has: Callable[..., None]) -> None:
    has(torch="2.13.0")
    _, told = packages.installed()
    assert (told.what, told.found, told.level) == ("transformers", "missing", Level.MISSING)
    assert told.advice == 'pip install "transformers<6,>=5.10"'


def test_one_is_of_another_version(has: Callable[..., None]) -> None:
    has(torch="2.6.0", transformers="4.57.1")
    _, told = packages.installed()
    assert told.found == "4.57.1, and tmerge needs <6,>=5.10" and told.level is Level.PROBLEM
    has(torch="2.6.0", transformers="5.11.0.dev0")
    assert len(list(packages.installed())) == 1, "a development version counts"


def test_run_from_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", none)
    (told,) = packages.installed()
    assert told.level is Level.NOTE and "not installed" in told.found


def test_what_is_installed_here_is_what_the_metadata_asks_for() -> None:
    assert [one for one in packages.installed() if one.level is not Level.OK] == []


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.python().level is Level.OK
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert packages.python().level is Level.MISSING and "3.11" in packages.python().advice


@pytest.mark.parametrize("name", sorted(extras.EXTRAS))
def test_extras_are_no_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, extras.EXTRAS[name].module, None)
    told = next(one for one in packages.extras() if one.what == f"extra {name}")
    assert told.level is Level.NOTE and told.found.startswith("not installed: ")
    assert told.advice == f'pip install "tmerge-tui[{name}]"'


def test_in_the_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built in is known from the build; what was not is had as a Python package."""
    whole = edition.Edition("0.1.0", "abc", "CPU", {"torch": "2.13.0", "peft": "0.21.2"}, edition.Engine("0", 1, 2, 3))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(packages, "edition", lambda: whole)
    monkeypatch.setattr(bundle, "is_split", lambda: True)
    first, _, inside = packages.findings()
    assert first.found == "0.1.0 (commit abc, CPU build), single file"
    assert inside.found == "torch 2.13.0, peft 0.21.2"
    told = {one.what: one for one in packages.extras()}
    assert told["extra lora"].found.startswith("peft is there")
    assert told["extra eval"].advice == extras.how_to_get("eval")
