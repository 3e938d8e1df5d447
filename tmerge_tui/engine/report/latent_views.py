"""Views of what ls_merge hands in: how its autoencoder was trained and chosen, and the matrices in its latent space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report.training_figure import training_curves
from tmerge_tui.quantities import NONE, bits, count, known, number, quantile

Row = Mapping[str, Any]
Shown = dict[str, Any]
DISTANCES = ("error", "raw_distance", "latent_distance", "ratio", "moved", "bures")


def autoencoder(found: Row) -> Shown:
    """Moments with the loss of the weights and what the decoded target is worth, the chosen one marked."""
    moments = [
        (
            count(moment["step"]),
            moment["phase"],
            number(moment["loss"]),
            bits(moment["bits_per_byte"]),
            "chosen" if moment["step"] == found["chosen"] else "",
        )
        for moment in found["moments"]
    ]
    blocks = f"{found['blocks']} + {found['blocks']} blocks of width {found['width']}"
    told = (
        f"{count(found['parameters'])} parameters, {blocks}; "
        f"chunks of {found['chunk']} numbers as latents of {found['latent']}; {count(found['steps'])} steps"
    )
    curve = {"model": "autoencoder", "seed": found["seed"], "curve": found["curve"]}
    return {"moments": moments, "told": told, "figures": list(training_curves([curve]))}


def latents(rows: Sequence[Row]) -> Shown:
    """Per kind the medians over layers, and every matrix."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    lines = [row | {"ratio": _ratio(row)} for row in map(dict, rows)]
    for row in lines:
        kinds[row["kind"]].append(row)
    return {
        "kinds": [
            (kind, count(len(mine)), *(_median(mine, name) for name in DISTANCES)) for kind, mine in kinds.items()
        ],
        "rows": [
            (
                row["layer"],
                row["kind"],
                NONE if row["source"] is None else row["source"],
                f"{count(row['chunks'])} / {count(row['source_chunks'])}",
                *(number(known(row[name])) for name in DISTANCES),
            )
            for row in lines
        ],
    }


def _ratio(row: Row) -> float | None:
    """Distance in the latent space over that of the weights: 1 where the latent space is the weights again."""
    return row["latent_distance"] / row["raw_distance"] if row["raw_distance"] else None


def _median(rows: Sequence[Row], name: str) -> str:
    values = [value for row in rows if (value := known(row[name])) is not None]
    return number(quantile(values, 0.5)) if values else NONE
