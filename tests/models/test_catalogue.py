"""The catalogue says what is true. References: tiny models of every family, and the page in docs."""

from __future__ import annotations

import pytest

from tests.engine.test_matrix import LAYOUTS
from tests.families import FAMILIES as TINY
from tests.models.families_docs import PAGE, layouts, page
from tmerge_tui.models.families.catalogue import EXPERTS, FAMILIES, HYBRID, SEES, Family
from tmerge_tui.models.layout import Layout
from tmerge_tui.recipe import PROJECTIONS


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Layout]:
    return layouts(tmp_path_factory.mktemp("families"))


def test_every_entry_is_tested_and_every_tested_family_has_an_entry() -> None:
    tested = {tiny.model_type or name for name, tiny in TINY.items()}
    assert {family.model_type for family in FAMILIES} == tested
    assert len(FAMILIES) == len(tested)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_an_entry_is_what_is_found(family: Family, found: dict[str, Layout]) -> None:
    variants = [found[name] for name, tiny in TINY.items() if (tiny.model_type or name) == family.model_type]
    for layout in variants:
        there = {p.kind for p in layout.projections}
        assert tuple(kind for kind in PROJECTIONS if kind in there) == family.projections
        notes = " ".join(layout.notes)
        assert ("mixture of experts" in notes) == (family.note == EXPERTS or family.model_type == "jamba")
        assert ("recurrent" in notes) == (family.note == HYBRID)
        assert any("language_model" in p.module for p in layout.projections) == (family.note == SEES)
    assert {layout.stored for layout in variants} == set(family.stored)


def test_the_page_has_the_tables(found: dict[str, Layout]) -> None:
    """When it has not: python -m tests.models.families_docs"""
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text, found, tuple(LAYOUTS))
