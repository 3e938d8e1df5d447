"""One ramp for every map: sixteen steps from low to high that stay distinct for colour-blind eyes (viridis).

Three ways to show a step: true colour, a walk through the 256-colour cube, or a glyph of growing ink when there is no
colour at all. Colour is never the only channel: every map prints its scale.
"""

from __future__ import annotations

from rich.color import Color

STEPS = 16
VIRIDIS = (
    "#440154", "#481a6c", "#472f7d", "#414487", "#39568c", "#31688e", "#2a788e", "#23888e",
    "#1f988b", "#22a884", "#35b779", "#54c568", "#7ad151", "#a5db36", "#d2e21b", "#fde725",
)  # fmt: skip
CUBE = (53, 54, 55, 61, 25, 24, 31, 30, 36, 35, 41, 77, 113, 149, 184, 226)
GLYPHS = " .:-=+*#%@"

TRUE_COLOURS = tuple(Color.parse(value) for value in VIRIDIS)
CUBE_COLOURS = tuple(Color.from_ansi(value) for value in CUBE)


def step(value: float, low: float, high: float) -> int:
    """0..15 for a value between low and high; the middle when the scale is empty."""
    if high <= low:
        return STEPS // 2
    return int(min(max((value - low) / (high - low) * STEPS, 0), STEPS - 1))


def glyph(level: int) -> str:
    return GLYPHS[level * len(GLYPHS) // STEPS]


def colours(color_system: str | None) -> tuple[Color, ...] | None:
    """The ramp of a terminal; None where glyphs must do. Textual paints true colour where it cannot tell."""
    if color_system in ("truecolor", None):
        return TRUE_COLOURS
    return CUBE_COLOURS if color_system == "256" else None
