"""The view of what ot_fusion hands in: how the two models' spaces were matched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tmerge_tui.quantities import NONE, count, number, quantile

Row = Mapping[str, Any]
TITLES = {"residual": "residual stream", "heads.q": "heads (what o reads)", "mlp": "neurons"}


def spaces(rows: Sequence[Row]) -> dict[str, Any]:
    """Per space: maps, widths, channels matched, then medians of how many channels one is a mean of, and cost."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["space"]].append(row)
    shown = []
    for space, mine in found.items():
        widths = sorted({(row["n"], row["n_source"]) for row in mine})
        costs = [row["cost"] for row in mine if row["cost"] is not None]
        shown.append(
            (
                TITLES.get(space, space),
                count(len(mine)),
                ", ".join(f"{n:,} from {source:,}" for n, source in widths),
                f"{count(sum(row['matched'] for row in mine))} of {count(sum(row['n'] for row in mine))}",
                number(quantile([row["spread"] for row in mine], 0.5)),
                number(quantile(costs, 0.5)) if costs else NONE,
            )
        )
    every = [
        (row["l"], row["m"], TITLES.get(row["space"], row["space"]), number(row["spread"]), number(row["cost"]))
        for row in rows
        if row["l"] is not None
    ]
    return {"rows": shown, "every": every}
