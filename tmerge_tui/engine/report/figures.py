"""Figures drawn from the rows of report.json: a function takes rows and gives a Figure or, without data, None."""

from __future__ import annotations

import base64
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report.axes import Frame, over_alpha
from tmerge_tui.engine.report.names import DRAWN
from tmerge_tui.engine.report.svg import SERIES, Figure, cells, colour, line, marker, polyline, rect, text
from tmerge_tui.quantities import known, number, quantile, signed

Row = Mapping[str, Any]
Matrix = Sequence[Sequence[float | None]]


def alpha_curve(scores: Sequence[Row]) -> Figure | None:
    """Difference to the target at every alpha tried, with 95 % intervals; what is drawn is in `names`."""
    rows = [
        s for s in scores if s["model"] in DRAWN and s["alpha"] is not None and known(s.get("difference")) is not None
    ]
    if not rows:
        return None
    alphas = sorted({s["alpha"] for s in rows})
    values = [known(s.get(name)) for s in rows for name in ("difference", "low", "high")]
    frame, body = over_alpha(alphas, [0.0, *(v for v in values if v is not None)], "fusion strength alpha")
    legend = frame.left - 54
    drawn = {model: name for model, name in DRAWN.items() if any(s["model"] == model for s in rows)}
    for place, (model, name) in enumerate(drawn.items()):
        css, shape = f"s{name.series}", name.shape
        look = css if shape == "disc" else f"{css} hollow"
        shift = (place - (len(drawn) - 1) / 2) * min(14.0, frame.width / len(alphas) / 5)
        mine = sorted((s for s in rows if s["model"] == model), key=lambda s: s["alpha"])
        points = [
            (frame.at_place(alphas.index(s["alpha"]), len(alphas)) + shift, frame.at_y(s["difference"])) for s in mine
        ]
        body.append(polyline(points, f"{css} line", name.dash))
        for s, (x, y) in zip(mine, points, strict=True):
            ends = known(s.get("low")), known(s.get("high"))
            if ends[0] is not None and ends[1] is not None:
                a, b = frame.at_y(ends[0]), frame.at_y(ends[1])
                body += [line(x, a, x, b, f"{css} bar"), line(x - 4, a, x + 4, a, css), line(x - 4, b, x + 4, b, css)]
            body.append(marker(x, y, shape, look, f"{name.title}, alpha {s['alpha']:g}: {signed(s['difference'])}"))
        body += [line(legend - 8, 18, legend + 16, 18, css), marker(legend + 4, 18, shape, look)]
        body.append(text(legend + 22, 22, name.title))
        legend += 48 + 7.2 * len(name.title)
    title = "Bits per byte of fused models and placebos minus the target's, for each alpha; below zero is better"
    return Figure("alpha", title, frame.right + 14, frame.bottom + 48, "".join(body))


def transported(projections: Sequence[Row]) -> Figure | None:
    """|transported| / |target| of every projection on a log axis, one strip per kind, the median as a bar."""
    kinds: dict[str, list[tuple[float, Any]]] = defaultdict(list)
    for p in projections:
        ratio = known(p.get("ratio"))
        if ratio is not None and ratio > 0:
            kinds[p["kind"]].append((ratio, p["layer"]))
    if not kinds:
        return None
    every = [r for strip in kinds.values() for r, _ in strip]
    low = min(math.floor(math.log10(min(every))), -3)
    high = max(math.ceil(math.log10(max(every))), 0)
    row = 30.0
    frame = Frame(48.0, 34.0, 440.0, row * len(kinds), 0.0, float(len(kinds)))
    left, top = frame.left, frame.top

    def at(ratio: float) -> float:
        return frame.at_log(ratio, 10.0**low, 10.0**high)

    body = [rect(left, top, at(0.01) - left, frame.height, "band")]
    body.append(text(left + 6, top - 8, "below 0.01: shrinkage, not transfer", "soft"))
    powers = [(power, at(10.0**power)) for power in range(low, high + 1)]
    body += [line(x, top, x, frame.bottom, "zero" if power == 0 else "grid") for power, x in powers]
    body += frame.below((x, f"{10.0**power:g}") for power, x in powers)
    if high >= 0:
        body.append(text(at(1.0), top - 8, "as large as the target", "soft", "end" if high == 0 else "middle"))
    for i, (kind, strip) in enumerate(kinds.items()):
        y = top + row * (i + 0.5)
        body.append(text(left - 10, y + 4, kind, "", "end"))
        body += [marker(at(r), y, "disc", "s0 hollow", f"{kind}, layer {layer}: {number(r)}") for r, layer in strip]
        x = at(quantile([r for r, _ in strip], 0.5))
        body.append(rect(x - 1.5, y - 11, 3, 22, "s1"))
    body += frame.names("norm of what was transported / norm of the target's weights")
    title = (
        "Size of what was transported against the target's weights, by projection; the bar is the median over layers"
    )
    return Figure("transported", title, frame.right + 24, frame.bottom + 48, "".join(body))


def heat_map(
    name: str,
    title: str,
    matrix: Matrix,
    *,
    rows: str,
    columns: str,
    low: float,
    high: float,
    labels: str = "",
) -> Figure | None:
    """A matrix with axis names, ticks and a colour bar. `labels` formats the numbers in cells that have room."""
    if not matrix or not matrix[0]:
        return None
    n, m = len(matrix), len(matrix[0])
    cell = 200.0 / max(n, m, 4)
    width, height = cell * m, cell * n
    left, top = 52.0, 28.0
    span = high - low or 1.0
    shares = [[None if known(v) is None else (float(v or 0) - low) / span for v in row] for row in matrix]
    body = [cells(shares, left, top, width, height), rect(left, top, width, height, "frame")]
    if labels and cell >= 26:
        for i, j in ((i, j) for i in range(n) for j in range(m)):
            share = shares[i][j]
            if share is not None:
                red, green, blue = colour(share)
                css = "dark" if 0.3 * red + 0.59 * green + 0.11 * blue > 130 else "light"
                words = labels.format(matrix[i][j])
                body.append(text(left + cell * (j + 0.5), top + cell * (i + 0.5) + 4, words, css, "middle"))
    body += [text(left - 6, top + cell * (i + 0.5) + 4, i, "soft", "end") for i in _some(n, cell)]
    body += [text(left + cell * (j + 0.5), top + height + 16, j, "soft", "middle") for j in _some(m, cell)]
    body.append(text(left + width / 2, top + height + 34, columns, "", "middle"))
    body.append(text(16, top + height / 2, rows, "", "middle", -90))
    body.append(text(left, 16, title, "strong"))
    bar = left + width + 14
    body.append(cells([[1 - i / 31] for i in range(32)], bar, top, 10, height))
    body.append(text(bar + 15, top + 9, number(high), "soft") + text(bar + 15, top + height, number(low), "soft"))
    # never narrower than its own title
    return Figure(name, title, max(bar + 66, left + 7.2 * len(title)), top + height + 44, "".join(body))


def layer_plan(kind: str, P: Matrix) -> Figure | None:
    """The layer plan as shares of each row: which source layers [M] every target layer [L] draws from."""
    shares: list[list[float | None]] = []
    for row in P:
        values = [known(v) or 0.0 for v in row]
        total = sum(values)
        shares.append([100 * v / total if total > 0 else None for v in values])
    title = f"{kind}: percent of each row"
    return _layers(f"layer-plan-{_slug(kind)}", title, shares, low=0, high=100, labels="{:.0f}")


def layer_cost(side: str, costs: Matrix) -> Figure | None:
    """Layer costs [L, M] of one side, from its lowest to its highest."""
    values = [v for row in costs for v in map(known, row) if v is not None]
    if not values:
        return None
    return _layers(f"layer-cost-{_slug(side)}", side, costs, low=min(values), high=max(values), labels="{:.2f}")


def _layers(name: str, title: str, matrix: Matrix, *, low: float, high: float, labels: str) -> Figure | None:
    return heat_map(name, title, matrix, rows="target layer", columns="source layer", low=low, high=high, labels=labels)


def feature_plan(tile: Row) -> Figure | None:
    """One feature plan Q as the event carried it: pooled cells of uint8 between lo and hi."""
    data, n, m = base64.b64decode(tile["data"]), tile["rows"], tile["cols"]
    if not data:
        return None
    if len(data) != n * m:
        raise ValueError(f"heat map {tile['title']!r}: {len(data)} cells, expected {n} x {m}")
    low, high = float(tile["lo"]), float(tile["hi"])
    matrix = [[low + (high - low) * v / 255 for v in data[i * m : i * m + m]] for i in range(n)]
    name = f"plan-{_slug(tile['side'])}-{tile['l']}-{tile['m']}"
    words = f"{tile['side']}: target layer {tile['l']}, source layer {tile['m']}"
    return heat_map(name, words, matrix, rows="target channels", columns="source channels", low=low, high=high)


def mass_share(mass: Sequence[Row]) -> Figure | None:
    """Share of a row's transport mass in its k largest entries, a line per side, mean over pairs (paper's figure 3)."""
    sides: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in mass:
        for entries, share in zip(row["entries"], row["share"], strict=True):
            if known(share) is not None and entries >= 1:
                sides[row["side"]][int(entries)].append(float(share))
    if not sides:
        return None
    most = max(2, *(k for curve in sides.values() for k in curve))
    frame = Frame(64.0, 16.0, 370.0, 240.0, 0.0, 1.0)

    def at(entries: int) -> float:
        return frame.at_log(entries, 1, most)

    body = frame.levels((0, 0.25, 0.5, 0.75, 1), lambda share: f"{share:.0%}")
    body += frame.below((at(k), k) for k in sorted({k for curve in sides.values() for k in curve}))
    names = []
    for i, (side, curve) in enumerate(sides.items()):
        css, dash = f"s{i % SERIES}", ("", "7 4", "2 3")[i // SERIES % 3]
        points = [(at(k), frame.at_y(sum(v) / len(v))) for k, v in sorted(curve.items())]
        body.append(polyline(points, f"{css} line", dash))
        names.append((points[-1], side, css))
    # names at the line ends, pushed apart so that none covers another
    floor = frame.top - 20.0
    for (x, y), side, css in sorted(names, key=lambda entry: entry[0][1]):
        floor = max(y + 4, floor + 15)
        body.append(line(x + 4, y, x + 18, floor - 4, css) + text(x + 22, floor, side))
    body += frame.names("largest entries of a row of Q", "share of the row's mass")
    title = "Share of transport mass in the largest entries of a row, by side"
    return Figure("mass", title, frame.right + 90, max(frame.bottom + 48, floor + 12), "".join(body))


def _some(n: int, cell: float) -> range:
    """Every index, or every 2nd, 4th... when labels 20 pixels apart would not fit."""
    step = 1
    while step * cell < 20:
        step *= 2
    return range(0, n, step)


def _slug(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", words).strip("-.") or "x"
