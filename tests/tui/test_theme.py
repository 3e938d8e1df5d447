"""Every ink of both themes can be read on every ground: WCAG's contrast is at least 4.5, computed from the theme."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual.color import Color
from textual.theme import Theme

import tmerge_tui.tui
from tmerge_tui.tui.theme import THEMES

INKS = ("foreground", "primary", "secondary", "accent", "success", "warning", "error")
GROUNDS = ("background", "surface", "panel")
NOT_OURS = ("result.py", "run.py", "scores.py", "chart.py", "matrix.py", "stages.py", "gauges.py", "logpane.py")


def ink(theme: Theme, name: str) -> str:
    return str(theme.variables.get(name) or getattr(theme, name))


def contrast(first: Color, second: Color) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Color) -> float:
    parts = [part / 255 for part in (colour.r, colour.g, colour.b)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("name", (*INKS, "text-muted", "text-disabled", "footer-key-foreground"))
def test_every_ink_stands_out_from_every_ground(theme: Theme, name: str) -> None:
    for ground in GROUNDS:
        found = contrast(Color.parse(ink(theme, name)), Color.parse(ink(theme, ground)))
        assert found >= 4.5, (name, ground, found)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("name", ("foreground", "primary", "text-muted"))
def test_what_is_chosen_can_be_read(theme: Theme, name: str) -> None:
    """The ground of a choice that has the focus, and of the main button: a fifth of the primary colour."""
    mixed = Color.parse(ink(theme, "background")).blend(Color.parse(ink(theme, "primary")), 0.2)
    assert contrast(Color.parse(ink(theme, name)), mixed) >= 4.5


def test_no_ink_is_thinned_by_hand() -> None:
    folder = Path(tmerge_tui.tui.__file__).parent
    for path in [*folder.rglob("*.py"), *folder.rglob("*.tcss")]:
        if path.name not in NOT_OURS:
            assert not re.search(r"\$(foreground|text) \d+%", path.read_text(encoding="utf-8")), path
