"""What else a merge has changed, in sentences of the verdict: behind the headline, before all others.

A sentence is about the model that the headline is about, and compares it with the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report import safety_view
from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.engine.report.verdict import FEW_TEXTS, Comparison, benchmark_better
from tmerge_tui.quantities import NONE, bits, count, interval, known, listed, signed

Row = Mapping[str, Any]


def with_besides(verdict: Row, results: Row) -> dict[str, Any]:
    """The verdict with a sentence for each part of `results` that tells of something else than the user's text."""
    who = result_of(verdict, results)
    said = [line for says in SAYS.values() for line in says(results, who)]
    return {**verdict, "sentences": [*said, *verdict["sentences"]]}


def result_of(verdict: Row, results: Row) -> tuple[str, float | None]:
    """(name, alpha) of the model that a run is about: chosen, trained, or fused at the alpha of the verdict."""
    for part, name in (("selection", "model"), ("adaptation", "result")):
        if results.get(part):
            return results[part][name], results[part].get("alpha")
    return "fused", verdict["alpha"]


def row_of(rows: Sequence[Row], who: tuple[str, float | None]) -> Row | None:
    """The row of a model; of a model without an alpha the first."""
    model, alpha = who
    return next((row for row in rows if row["model"] == model and alpha in (None, row["alpha"])), None)


def forgotten(results: Row, who: tuple[str, float | None]) -> list[str]:
    """What was lost on general text, and in general tasks where there are any."""
    general = results.get("general")
    if not general:
        return []
    if who[0] == "target":
        return [f"Nothing was lost on {general['name']}: model/ is the target itself."]
    row = row_of(general["rows"], who)
    if row is None:  # another strength than was measured
        return []
    if known(row["bits_per_byte"]) is None:
        return [f"On {general['name']} {beside_trained(who[0])} gave no finite score."]
    found = Comparison.of(row)
    size = f"{bits(abs(found.difference or 0.0))} bits per byte"
    ends = f"95 % interval {interval(found.low, found.high)}"
    told = {
        False: f"Lost {size} on {general['name']} ({ends})",
        True: f"Nothing was lost on {general['name']}: {size} better than the target ({ends})",
        None: f"Nothing measurable was lost on {general['name']} ({found})",
    }[found.better]
    few = f"; {count(general['texts'])} texts are too few to trust that" if general["texts"] < FEW_TEXTS else ""
    return [f"{told}{few}{_tasks(results, general['tasks'], who)}."]


def came_from(results: Row, who: tuple[str, float | None]) -> list[str]:
    """Where the gap to the source was closed."""
    found = results.get("attribution") or {}
    row = row_of(found.get("rows") or [], who)
    if row is None:
        return []
    there, elsewhere = row["there"], row["elsewhere"]
    much = f"{found['threshold']:g} bit{'' if found['threshold'] == 1 else 's'}"
    if not there["tokens"]:
        return [f"At no held-out token is the source better than the target by more than {much}."]
    if there["share"] is None:
        return []
    gained = f"{signed(-elsewhere['gain'])} bits per byte ({interval(-elsewhere['gain_high'], -elsewhere['gain_low'])})"
    return [
        f"Where the source is better by more than {much} ({there['tokens']:.0%} of held-out tokens), {share(there)} of "
        f"the gap to it was closed; all other tokens changed by {gained}."
    ]


# part of report.json -> its sentences, in their order
SAYS = {"general": forgotten, "safety": safety_view.told, "attribution": came_from}


def share(place: Row) -> str:
    """`24 % (20 % to 28 %)`; nothing where there was no gap to close."""
    if known(place["share"]) is None:
        return NONE
    ends = (
        ""
        if known(place["share_low"]) is None
        else f" ({_percent(place['share_low'])} to {_percent(place['share_high'])})"
    )
    return _percent(place["share"]) + ends


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %".replace("-0.0 %", "0.0 %")


def _tasks(results: Row, tasks: Sequence[str], who: tuple[str, float | None]) -> str:
    """How many of the general tasks tell the result from the target, and which way."""
    rows = [row for row in results.get("benchmarks") or [] if row["task"] in tasks]
    mine = [row for row in rows if row_of([row], who) is not None]
    if not mine:
        return ""
    words: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for row in mine:
        words[benchmark_better(row)].append(f"{row['task']} ({row['metric']})")
    told = [f"{word} on {listed(words[way])}" for way, word in ((False, "worse"), (True, "better")) if words[way]]
    return f"; of general tasks {' and '.join(told) or f'none of {len(mine)} scores is told from the target'}"
