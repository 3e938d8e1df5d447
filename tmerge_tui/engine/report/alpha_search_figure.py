"""The figure of `alpha: auto`: bits per byte of the validation text at every strength tried, a line for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report.svg import SERIES, Figure, line, marker, polyline, signed_tick, text, ticks
from tmerge_tui.quantities import known, signed

Row = Mapping[str, Any]
SHAPES = ("disc", "square", "diamond")


def strength_curve(trials: Sequence[Row]) -> Figure | None:
    """Difference to the target over alpha, evenly spaced as the values are few; None without a finite trial."""
    rows = [t for t in trials if known(t.get("against_target")) is not None]
    if not rows:
        return None
    alphas = sorted({0.0} | {t["alpha"] for t in rows})
    values = [0.0] + [t["against_target"] for t in rows]
    spread = max(values) - min(values) or 1e-4
    low, high = min(values) - 0.08 * spread, max(values) + 0.08 * spread
    left, top, width, height = 92.0, 40.0, 430.0, 240.0

    def at_x(alpha: float) -> float:
        return left + width * (alphas.index(alpha) + 0.5) / len(alphas)

    def at_y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    body = []
    for tick in ticks(low, high):
        body += [line(left, at_y(tick), left + width, at_y(tick), "grid")]
        body += [text(left - 8, at_y(tick) + 4, signed_tick(tick), "soft", "end")]
    body += [
        line(left, at_y(0), left + width, at_y(0), "zero"),
        text(left + width, at_y(0) - 6, "target", "soft", "end"),
    ]
    body += [text(at_x(alpha), top + height + 18, f"{alpha:g}", "soft", "middle") for alpha in alphas]
    body.append(text(left + width / 2, top + height + 38, "strength of this kind, alpha", "", "middle"))
    body.append(text(14, top + height / 2, "bits per byte minus the target's", "", "middle", -90))
    for place, kind in enumerate(dict.fromkeys(t["kind"] for t in rows)):
        css, shape = f"s{place % SERIES}", SHAPES[place % len(SHAPES)]
        mine = sorted({t["alpha"]: t for t in rows if t["kind"] == kind}.values(), key=lambda t: t["alpha"])
        points = [(at_x(t["alpha"]), at_y(t["against_target"])) for t in mine]
        body.append(polyline(points, f"{css} line"))
        for t, (x, y) in zip(mine, points, strict=True):
            hint = f"{kind}, alpha {t['alpha']:g}: {signed(t['against_target'])}"
            body.append(marker(x, y, shape, css if t["kept"] else f"{css} hollow", hint))
        x = left - 54 + 68 * place
        body += [marker(x, 18, shape, css), text(x + 10, 22, kind)]
    title = "Bits per byte of the validation text minus the target's, for each kind at every strength tried"
    return Figure("strength", title, left + width + 14, top + height + 48, "".join(body))
