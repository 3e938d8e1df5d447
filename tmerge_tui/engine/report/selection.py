"""The first line of a run that chose its model: what was chosen, its worth, and what share of the gap it closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.engine.report.verdict import Comparison
from tmerge_tui.quantities import bits, count, known, listed, signed
from tmerge_tui.recipe.adaptation import CONTROLS, UNTUNED

Row = Mapping[str, Any]


def with_selection(
    verdict: Row, selection: Row | None, scores: Sequence[Row], adaptation: Row | None
) -> dict[str, Any]:
    """The verdict whose headline is about model/; what was said of fusion stays among its sentences."""
    if selection is None:
        return dict(verdict)
    model, texts = selection["model"], count(selection["texts"])
    tried = len(selection["rows"]) - 1
    broken = _broken(selection)
    if model == "target":
        headline = (
            f"Nothing beat the target: of {tried} candidates none is better by {selection['margin']:g} bits per byte "
            f"on {texts} validation texts{' within the bound on general text' if broken else ''}, so model/ is the "
            "target's own bytes."
        )
        own = {"helped": None, "beats_placebos": None, "alpha": None}  # the target itself has nothing to prove
        return {**verdict, "headline": headline, "sentences": [*broken, *_rest(verdict)], **own}
    rows = [*scores, *(adaptation or {}).get("rows", [])]
    mine = next(
        row for row in rows if row["model"] == model and (model != "fused" or row["alpha"] == selection["alpha"])
    )
    target = next(row for row in scores if row["model"] == "target")
    compared = Comparison.of(mine)
    word = {True: "better than", False: "worse than", None: "not told apart from"}[compared.better]
    headline = (
        f"model/ is {word} the target: {beside_trained(model)}, {bits(mine['bits_per_byte'])} bits per byte against "
        f"{bits(target['bits_per_byte'])} ({compared}){_gap(mine, target, scores)}."
    )
    chosen = f"It was the best of {tried} candidates on {texts} validation texts, which the hold-out has no part in."
    sentences = [chosen, *broken, *_against(model, adaptation), *_rest(verdict)]
    beats = _beats(model, adaptation, verdict)
    return {**verdict, "headline": headline, "helped": compared.better, "sentences": sentences, "beats_placebos": beats}


def _broken(selection: Row) -> list[str]:
    """Candidates that lose more on general text than they may."""
    broken = [row for row in selection["rows"] if row.get("general") and not row["general"]["kept"]]
    if not broken:
        return []
    names = listed(f"{_name(row)} ({signed(row['general']['difference'])})" for row in broken)
    return [f"Not chosen, for losing more than {selection['bound']:g} bits per byte on general text: {names}."]


def _name(row: Row) -> str:
    return beside_trained(row["model"]) + ("" if row["alpha"] is None else f" at alpha {row['alpha']:g}")


def _gap(mine: Row, target: Row, scores: Sequence[Row]) -> str:
    """What share of the gap between target and source was closed; empty where the source is not better."""
    source = next((known(row["bits_per_byte"]) for row in scores if row["model"] == "source"), None)
    start, end = known(target["bits_per_byte"]), known(mine["bits_per_byte"])
    if source is None or start is None or end is None or start - source <= 0:
        return ""
    return f"; {(start - end) / (start - source):.0%} of the gap to the source ({bits(source)}) is closed"


def _against(model: str, adaptation: Row | None) -> list[str]:
    said = []
    for contrast in (adaptation or {}).get("contrasts", []):
        placebo = contrast["model"] == "distilled" and contrast["against"].startswith(CONTROLS)
        if contrast["model"] == model or placebo:
            compared = Comparison.of(contrast)
            end = {True: "is better", False: "is worse", None: "cannot be told apart"}[compared.better]
            who = "it" if contrast["model"] == model else f"{beside_trained('distilled')} from the target alone"
            said.append(f"Against {beside_trained(contrast['against'])} {who} {end} ({compared}).")
    return said


def _beats(model: str, adaptation: Row | None, verdict: Row) -> bool | None:
    """Whether the chosen model beats every placebo that was measured of it; None where there is none."""
    if model == "fused":
        return bool(verdict["beats_placebos"])
    controls = [
        Comparison.of(contrast)
        for contrast in (adaptation or {}).get("contrasts", [])
        if contrast["model"] in (model, "distilled")
        and str(contrast["against"]).startswith(CONTROLS)
        and contrast["against"] != UNTUNED
    ]
    return all(each.better for each in controls) if controls else None


def _rest(verdict: Row) -> list[str]:
    return [f"On fusion alone: {verdict['headline']}", *verdict["sentences"]]
