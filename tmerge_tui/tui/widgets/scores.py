"""The score table of a finished run: every model, its bits per byte and how sure the difference to the target is."""

from __future__ import annotations

from typing import Any

from textual.content import Content

from tmerge_tui.quantities import NONE
from tmerge_tui.tui.widgets.chart import Series

NAMES = {
    "target": "target alone",
    "source": "source",
    "fused": "fused",
    "adapted": "adapted",
    "sft": "plain SFT",
    "distilled": "distilled",
    "shrink": "placebo: shrunk",
    "permuted": "placebo: permuted",
}
STYLES = {
    "fused": ("$primary", "●"),
    "adapted": ("$success", "◆"),
    "shrink": ("$accent", "▲"),
    "permuted": ("$foreground 60%", "■"),
}


def table(scores: list[dict[str, Any]]) -> Content:
    """Aligned lines; a mark says whether an interval excludes zero, not only its colour."""
    head = f"{'':<19}{'alpha':>6}{'bits/byte':>11}{'to target':>10} 95 % interval"
    lines = [Content.styled(head, "$foreground 60%")]
    order = list(NAMES)
    ranked = sorted(scores, key=lambda s: (s["alpha"] or 0.0, order.index(s["model"]) if s["model"] in order else 99))
    previous = ranked[0]["alpha"] if ranked else None
    for score in ranked:
        if score["alpha"] != previous:
            lines.append(Content(""))
        previous = score["alpha"]
        lines.append(_row(score))
    return Content("\n").join(lines)


def _row(score: dict[str, Any]) -> Content:
    value, difference = score.get("bits_per_byte"), score.get("difference")
    name = NAMES.get(score["model"], score["model"])
    alpha = NONE if score["alpha"] is None else f"{score['alpha']:g}"
    text = NONE if value is None else f"{value:.4f}"
    parts: list[Any] = [(f"{name:<19}", "bold" if score["model"] == "fused" else ""), f"{alpha:>6}{text:>11}"]
    if difference is not None:
        low, high = score.get("low"), score.get("high")
        interval = "" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]"
        verdict, style = " unclear", "$foreground 60%"
        if high is not None and high < 0:
            verdict, style = " better", "$success"
        elif low is not None and low > 0:
            verdict, style = " worse", "$error"
        parts += [(f"{difference:>+10.4f}", style), (interval, "$foreground 60%"), (verdict, style)]
    return Content.assemble(*parts)


def curves(scores: list[dict[str, Any]]) -> list[Series]:
    """Difference to the target over alpha, a line for each kind of model."""
    made = []
    for model in STYLES:
        points = [
            (s["alpha"], s["difference"]) for s in scores if s["model"] == model and s.get("difference") is not None
        ]
        if points:
            name = NAMES[model].removeprefix("placebo: ")
            made.append(Series(name, tuple(sorted(points)), *STYLES[model]))
    return made
