"""What was measured, as aligned lines: bits per byte, how sure differences are, and what owes nothing to the source.

Green is for one thing: better than the target and better than every placebo. That a placebo is better than the target
is no success, nor is a result that cannot be told from its placebos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

from tmerge_tui.engine.report.names import DRAWN, beside_trained, rank, short
from tmerge_tui.engine.report.verdict import Comparison, beaten
from tmerge_tui.quantities import NONE, bits, count, known, signed
from tmerge_tui.tui.widgets.chart import Series

Row = Mapping[str, Any]

FAINT = "$text-muted"
WORDS = {True: "better", False: "worse", None: "unclear"}
LOOKS = {"fused": ("$primary", "●"), "shrink": ("$accent", "▲"), "permuted": ("$text-muted", "■")}
OTHER = ("$secondary", "◆")  # what has no look of its own
NAME = 19  # columns
WHOLE = 76  # columns from which on intervals have room; below, the word says what they say
BROAD = 110  # columns from which on long names are whole
POINTS = 400  # of a curve that are drawn: a terminal has no more columns


def table(scores: Sequence[Row], contrasts: Sequence[Row], room: int = WHOLE) -> Content:
    """Every model that was not trained, its difference to the target alone and in a word what its interval says."""
    head = f"{'':<{NAME}}{'alpha':>6}{'bits/byte':>11}{'to target':>10}{' 95 % interval' * (room >= WHOLE)}"
    lines = [Content.styled(head, FAINT)]
    previous = None
    for score in sorted(scores, key=lambda s: (s["alpha"] is not None, s["alpha"] or 0.0, rank(s["model"]))):
        if score["alpha"] != previous:
            lines.append(Content(""))
        previous = score["alpha"]
        fused = score["model"] == "fused"
        beats, measured = beaten(contrasts, score["alpha"]) if fused else (0, 0)
        lines.append(_row(short(score["model"]), score, fused, fused and 0 < measured == beats, room))
    return Content("\n").join(lines)


def placebos(contrasts: Sequence[Row], room: int = WHOLE) -> Content:
    """Fused minus each placebo, a line for each alpha: below 0 is better, and the word is what the interval says."""
    if not contrasts:
        return Content.styled("No placebo was measured.", "$warning")
    names = sorted(dict.fromkeys(row["against"] for row in contrasts), key=rank)
    first, each = (NAME, 22) if room >= WHOLE else (13, 18)
    titles = [short(name) if room >= WHOLE else short(name).removeprefix("placebo: ") for name in names]
    head = f"{'fused against':<{first}}{'alpha':>6}" + "".join(f"{title:>{each}}" for title in titles)
    lines = [Content.styled(head, FAINT)]
    for alpha in sorted({row["alpha"] for row in contrasts}):
        mine = {row["against"]: Comparison.of(row) for row in contrasts if row["alpha"] == alpha}
        parts: list[Any] = [f"{'':<{first}}{alpha:>6g}"]
        for found in (mine.get(name, Comparison(None, None, None)) for name in names):
            said = NONE if found.difference is None else f"{signed(found.difference)} {WORDS[found.better]}"
            parts.append((f"{said:>{each}}", {True: "$success", False: "$error", None: FAINT}[found.better]))
        lines.append(Content.assemble(*parts))
    return Content("\n").join(lines)


def chosen(selection: Row) -> Content:
    """Every candidate for model/ on validation text, and which it was."""
    head = f"{'for model/':<{NAME + 3}}{'alpha':>6}{'bits/byte':>11}{'to target':>10}"
    lines = [Content.styled(f"{head}   on {count(selection['texts'])} validation texts", FAINT)]
    for row in selection["rows"]:
        mine = (row["model"], row["alpha"]) == (selection["model"], selection["alpha"])
        alpha = NONE if row["alpha"] is None else f"{row['alpha']:g}"
        difference = "" if known(row["difference"]) is None else signed(row["difference"])
        said = f"{beside_trained(row['model']):<{NAME + 3}}{alpha:>6}{bits(row['bits_per_byte']):>11}{difference:>10}"
        lines.append(Content.styled(said + ("   chosen" if mine else ""), "bold" if mine else ""))
    return Content("\n").join(lines)


def trained(rows: Sequence[Row], room: int = WHOLE) -> Content:
    """Trained models; what training gains is not fusion's success, so nothing here is green."""
    first = _wide([row["model"] for row in rows], 21, room)
    head = f"{'':<{first}}{'bits/byte':>10}{'spread':>7}{'to target':>10}{' 95 % interval' * (room >= WHOLE)}"
    lines = [Content.styled(head, FAINT)]
    for row in rows:
        spread = NONE if known(row["spread"]) is None else f"{row['spread']:.4f}"
        name = f"{_cut(beside_trained(row['model']), first)}{bits(row['bits_per_byte']):>10}{spread:>7}"
        lines.append(Content.assemble(name, *_difference(row, False, room)))
    return Content("\n").join(lines)


def trained_contrasts(rows: Sequence[Row], room: int = WHOLE) -> Content:
    """Who beats whom on the same tokens; the word is what the interval says, green where both were trained."""
    least = (23, 24) if room >= WHOLE else (17, 19)
    first = _wide([row["model"] for row in rows], least[0], room)
    second = _wide([row["against"] for row in rows], least[1], room)
    lines = [Content.styled(f"{'':<{first}}{'against':<{second}}{'difference':>10}", FAINT)]
    for row in rows:
        found = Comparison.of(row)
        won = "$success" if row["against"] != "fused" else ""
        style = {True: won, False: "$error", None: FAINT}[found.better]
        ours, theirs = beside_trained(row["model"]), beside_trained(row["against"])
        name = _cut(ours, first) + _cut(theirs, second)
        lines.append(Content.assemble(name, (f"{signed(found.difference):>10} {WORDS[found.better]}", style)))
    return Content("\n").join(lines)


def _wide(models: Sequence[str], least: int, room: int) -> int:
    """Columns for their names: for the longest of them where the terminal is broad."""
    longest = max((len(beside_trained(model)) + 2 for model in models), default=0)
    return max(least, longest) if room >= BROAD else least


def _cut(name: str, width: int) -> str:
    return f"{name if len(name) < width else name[: width - 2] + '…':<{width}}"


def _row(name: str, row: Row, bold: bool, success: bool, room: int) -> Content:
    alpha = NONE if row["alpha"] is None else f"{row['alpha']:g}"
    start = f"{name:<{NAME}}", "bold" if bold else ""
    return Content.assemble(start, f"{alpha:>6}{bits(row['bits_per_byte']):>11}", *_difference(row, success, room))


def _difference(row: Row, success: bool, room: int) -> list[tuple[str, str]]:
    """The difference, its interval and a word: the word says what the colour says."""
    found = Comparison.of(row)
    if found.difference is None:
        return []
    style = {True: "$success" if success else "", False: "$error", None: FAINT}[found.better]
    unknown = found.low is None or found.high is None
    ends = "" if unknown or room < WHOLE else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return [(f"{signed(found.difference):>10}", style), (ends, FAINT), (f" {WORDS[found.better]}", style)]


def curves(scores: Sequence[Row]) -> tuple[list[Series], list[str]]:
    """Difference to the target over alpha, a line for each model, and the alphas, which are the places on the axis.

    Models stand side by side at each alpha, so that none hides another; what was fused is drawn last.
    """
    rows = [
        s for s in scores if s["model"] in DRAWN and s["alpha"] is not None and known(s.get("difference")) is not None
    ]
    alphas = sorted({s["alpha"] for s in rows})
    models = [model for model in DRAWN if any(s["model"] == model for s in rows)]
    made = []
    for place, model in enumerate(models):
        shift = (place - (len(models) - 1) / 2) * 0.2
        points = [(alphas.index(s["alpha"]) + shift, s["difference"]) for s in rows if s["model"] == model]
        made.append(Series(short(model).removeprefix("placebo: "), tuple(sorted(points)), *LOOKS.get(model, OTHER)))
    return made[::-1], [f"{alpha:g}" for alpha in alphas]


def losses(curves: Sequence[Sequence[tuple[float, float]]]) -> list[Series]:
    """The loss of one method's trainings over their steps, a line for each seed."""
    styles = ("$primary", "$accent", "$secondary", "$warning")
    made = []
    for place, points in enumerate(curves):
        every = max(1, len(points) // POINTS)
        shown = [*points[:-1:every], *points[-1:]]
        made.append(Series("", tuple(shown), styles[place % len(styles)]))
    return made
