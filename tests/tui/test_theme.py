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
THINNED = re.compile(r"\$([a-z-]+) (\d+)%")  # a colour with alpha
PAIRED = re.compile(r"\$([a-z-]+)[a-z ]* on \$([a-z-]+) (\d+)%")  # in code: "$primary bold on $primary 20%"
RULE = re.compile(r"[^{}]*\{([^{}]*)\}")
SOURCES = sorted(path for kind in ("*.py", "*.tcss") for path in Path(tmerge_tui.tui.__file__).parent.rglob(kind))


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


def styles() -> set[tuple[str, str, int]]:
    """(ink, ground with alpha, its percent) of every style in code and style sheet whose ground is thinned."""
    found: set[tuple[str, str, int]] = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        found |= {(ink, ground, int(share)) for ink, ground, share in PAIRED.findall(text)}
        if path.suffix == ".tcss":
            for body in RULE.findall(text):
                ground = re.search(r"background: \$([a-z-]+) (\d+)%", body)
                own = re.search(r"(?<!-)color: \$([a-z-]+);", body)
                if ground:
                    found.add((own[1] if own else "foreground", ground[1], int(ground[2])))
    return found


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_what_stands_on_a_thinned_ground_can_be_read(theme: Theme) -> None:
    """The grounds of a choice, a row or a field that has the focus, blended over each ground they may lie on."""
    assert ("foreground", "primary", 20) in styles()
    inks = {name for name, _, _ in styles()} | {"primary", "text-muted"}  # a row of choices mixes them
    for under in GROUNDS[:2]:
        for name, ground, share in styles():
            mixed = Color.parse(ink(theme, under)).blend(Color.parse(ink(theme, ground)), share / 100)
            for one in {name} if share > 20 else inks:
                found = contrast(Color.parse(ink(theme, one)), mixed)
                assert found >= 4.5, (one, f"{ground} {share}% on {under}", found)


def test_no_ink_is_thinned_anywhere() -> None:
    """Alpha only on grounds: `on $primary 20%`, `background: $primary 30%`."""
    for path in SOURCES:
        for line in path.read_text(encoding="utf-8").splitlines():
            for match in THINNED.finditer(line):
                before = line[: match.start()].rstrip()
                assert before.endswith((" on", "background:")), (path.name, line.strip())
