"""Views of what else a merge has changed: general text, and where a gain comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmerge_tui.engine.report.besides import share
from tmerge_tui.engine.report.names import OUTCOMES, beside_trained
from tmerge_tui.engine.report.verdict import Comparison
from tmerge_tui.quantities import NONE, bits, count, interval, signed

Row = Mapping[str, Any]
Shown = dict[str, Any]


def general(found: Row) -> Shown:
    """Every model on general text, and which of the benchmarks are general tasks."""
    rows = []
    for row in found["rows"]:
        compared = Comparison.of(row)
        outcome = "baseline" if row["model"] == "target" else OUTCOMES[compared.better]
        between = signed(compared.difference), interval(compared.low, compared.high)
        rows.append((beside_trained(row["model"]), _alpha(row), bits(row["bits_per_byte"]), *between, outcome))
    told = f"{count(found['texts'])} texts of {found['name']}, of which nothing was aligned, trained or chosen on."
    return {"rows": rows, "told": told, "tasks": found["tasks"]}


def attribution(found: Row) -> Shown:
    """What share of the gap each model closed, there and elsewhere, and the texts that changed most."""
    rows = []
    for row in found["rows"]:
        there, elsewhere = row["there"], row["elsewhere"]
        apart = row["difference"]
        told = (
            NONE
            if apart is None
            else f"{100 * apart['difference']:+.1f} ({100 * apart['low']:+.1f} to {100 * apart['high']:+.1f})"
        )
        rows.append(
            (
                beside_trained(row["model"]),
                _alpha(row),
                share(there),
                _change(there),
                share(elsewhere),
                _change(elsewhere),
                told,
            )
        )
    first = found["rows"][0]
    gaps = {place: f"{first[place]['gap']:.4f}" for place in ("there", "elsewhere")} if found["rows"] else {}
    told = (
        f"{count(found['tokens'])} tokens of {count(found['texts'])} held-out texts. There: the source needed more "
        f"than {found['threshold']:g} bits less than the target ({first['there']['tokens']:.1%} of tokens, "
        f"{gaps['there']} bits per byte of the gap); elsewhere: all others ({gaps['elsewhere']} bits per byte)."
    )
    texts = [
        {
            "title": f"{beside_trained(one['model'])}" + ("" if one["alpha"] is None else f", alpha {one['alpha']:g}"),
            "columns": [(word, [_excerpt(text) for text in one[word]]) for word in ("gained", "lost")],
        }
        for one in found["excerpts"]
        if one["gained"] or one["lost"]
    ]
    return {"rows": rows, "told": told, "texts": texts}


def _excerpt(text: Row) -> tuple[str, str]:
    """(how it changed, the text)"""
    scores = ", ".join(f"{name} {bits(text[name])}" for name in ("target", "source", "result"))
    return f"{signed(text['difference'])} ({scores})", text["text"]


def _change(place: Row) -> str:
    """Of bits per byte, below 0 is better."""
    return f"{signed(-place['gain'])} ({interval(-place['gain_high'], -place['gain_low'])})"


def _alpha(row: Row) -> str:
    return NONE if row["alpha"] is None else f"{row['alpha']:g}"
