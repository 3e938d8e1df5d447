"""Views of what transport-merge hands in: what moved, layer plans and costs, feature plans, how the solves went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report import figures
from tmerge_tui.engine.report.svg import Figure
from tmerge_tui.quantities import NONE, count, known, number, quantile

Row = Mapping[str, Any]
Shown = dict[str, Any]

SIZES = ("transported_norm", "target_norm", "ratio", "cosine")
VIOLATIONS = ("violation", "max_violation")


def projections(rows: Sequence[Row]) -> Shown:
    """Every fused projection, and per kind: how many, then median, lowest and highest ratio, median cosine."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row["kind"]].append(row)
    sizes = []
    for kind, mine in kinds.items():
        ratios, cosines = (_finite(row.get(name) for row in mine) for name in ("ratio", "cosine"))
        spread = f"{number(min(ratios))} to {number(max(ratios))}" if ratios else NONE
        sizes.append((kind, count(len(mine)), _median(ratios), spread, _median(cosines)))
    return {
        "sizes": sizes,
        "rows": [
            (
                row["layer"],
                row["kind"],
                row.get("axis", NONE),
                count(row.get("k")),
                *(number(row.get(n)) for n in SIZES),
            )
            for row in rows
        ],
        "figures": [figures.transported(rows)],
    }


def layer_plans(plans: Mapping[str, Row]) -> Shown | None:
    return _pictures(figures.layer_plan(kind, plan["P"]) for kind, plan in plans.items())


def layer_costs(costs: Mapping[str, Any]) -> Shown | None:
    return _pictures(figures.layer_cost(side, cost) for side, cost in costs.items())


def mass(rows: Sequence[Row]) -> Shown | None:
    return _pictures([figures.mass_share(rows)])


def heatmaps(tiles: Sequence[Row]) -> Shown | None:
    return _pictures(figures.feature_plan(tile) for tile in tiles)


def _pictures(drawn: Iterable[Figure | None]) -> Shown | None:
    """A part that is nothing but its drawings."""
    made = [figure for figure in drawn if figure is not None]
    return {"figures": made} if made else None


def pairs(rows: Sequence[Row]) -> Shown:
    """Per side: converged of all, iterations (median, 90 %, most), worst violation relative and as the paper has it."""
    sides: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        sides[row["side"]].append(row)
    shown = []
    for side, mine in sides.items():
        steps = [row["iterations"] for row in mine]
        shown.append(
            (
                side,
                f"{count(sum(bool(row['converged']) for row in mine))} of {count(len(mine))}",
                *(count(quantile(steps, q)) for q in (0.5, 0.9, 1)),
                *(number(max(_finite(row.get(name) for row in mine), default=None)) for name in VIOLATIONS),
                ", ".join(sorted({str(row.get("solver", NONE)) for row in mine})),
            )
        )
    return {"rows": shown}


def _finite(values: Any) -> list[float]:
    return [value for value in map(known, values) if value is not None]


def _median(values: Sequence[float]) -> str:
    return number(quantile(values, 0.5)) if values else NONE
