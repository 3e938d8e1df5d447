"""The figure of `alpha: auto`: bits per byte of the validation text at every strength tried, a line for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report.axes import over_alpha
from tmerge_tui.engine.report.svg import SERIES, Figure, marker, polyline, text
from tmerge_tui.quantities import known, signed

Row = Mapping[str, Any]
SHAPES = ("disc", "square", "diamond")


def strength_curve(trials: Sequence[Row]) -> Figure | None:
    """Difference to the target at every strength tried; None without a finite trial."""
    rows = [t for t in trials if known(t.get("against_target")) is not None]
    if not rows:
        return None
    alphas = sorted({0.0} | {t["alpha"] for t in rows})
    differences = [0.0, *(t["against_target"] for t in rows)]
    frame, body = over_alpha(alphas, differences, "strength of this kind, alpha")
    for place, kind in enumerate(dict.fromkeys(t["kind"] for t in rows)):
        css, shape = f"s{place % SERIES}", SHAPES[place % len(SHAPES)]
        mine = sorted({t["alpha"]: t for t in rows if t["kind"] == kind}.values(), key=lambda t: t["alpha"])
        points = [
            (frame.at_place(alphas.index(t["alpha"]), len(alphas)), frame.at_y(t["against_target"])) for t in mine
        ]
        body.append(polyline(points, f"{css} line"))
        for t, (x, y) in zip(mine, points, strict=True):
            hint = f"{kind}, alpha {t['alpha']:g}: {signed(t['against_target'])}"
            body.append(marker(x, y, shape, css if t["kept"] else f"{css} hollow", hint))
        x = frame.left - 54 + 68 * place
        body += [marker(x, 18, shape, css), text(x + 10, 22, kind)]
    title = "Bits per byte of the validation text minus the target's, for each kind at every strength tried"
    return Figure("strength", title, frame.right + 14, frame.bottom + 48, "".join(body))
