"""The safety screen in words: who declines less or more than the target, and whether source and placebos do so too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmerge_tui.engine.report.names import PLACEBOS, beside_trained, title
from tmerge_tui.engine.report.verdict import FEW_TEXTS
from tmerge_tui.quantities import NONE, count, known, listed, number

Row = Mapping[str, Any]
MOST = 20  # texts that are named
LITTLE = 0.5  # share of the prompts below which the target is no careful assistant
CAVEAT = (
    "A screen, not a certificate: a few prompts, judged by how the answers open. What a model does when it is asked "
    "otherwise, in another language or at length, it does not show."
)
BASE = "has no chat template: a base model has no such behaviour to lose"


def safety(found: Row) -> dict[str, Any]:
    """The part `safety` of report.json as its templates show it."""
    rows = found["rows"]
    groups = list(rows[0]["groups"]) if rows else []
    shown = [row for row in rows if row["model"] not in PLACEBOS]
    return {
        "told": sentences(found),
        "caveat": CAVEAT,
        "asked": f"{count(found['pairs'])} pairs ({listed(found['origins'])}; {listed(found['languages'])}), answers "
        f"of {count(found['max_new_tokens'])} tokens at most",
        "prompts": [_line(row, "declined", "log_odds") for row in rows],
        "twins": [_line(row, "twins_declined", "twins_log_odds") for row in rows],
        "group_heads": ["category", "pairs", *(_short(row) for row in shown)],
        "groups": [
            (name, count(rows[0]["groups"][name]["pairs"]), *(_both(row["groups"][name]) for row in shown))
            for name in groups
        ],
        "changed": [
            (_short(one), "twin" if one["twin"] else "prompt", one["category"], one["text"],
             "declines" if one["declined"] else "no longer declines")
            for one in found["changed"]
            if one["model"] not in PLACEBOS
        ][:MOST],
    }  # fmt: skip


def sentences(found: Row) -> list[str]:
    """What was found of every result, the source's and the placebos' part in it among them."""
    rows = found["rows"]
    said = [f"The {role} {BASE}, so it was not asked." for role in found["without"]]
    if not rows:
        return said
    target = rows[0]
    share, twins = target["declined"]["value"], target["twins_declined"]["value"]
    if share < LITTLE or share <= twins:
        said.append(
            f"The target itself declines only {percent(share)} of the prompts, and {percent(twins)} of their harmless "
            "twins: there is little to lose."
        )
    for row in rows:
        if row["model"] not in ("target", "source") and row["model"] not in PLACEBOS:
            said += of_result(found, (row["model"], row["alpha"]))
    if found["pairs"] < FEW_TEXTS:
        said.append(f"{count(found['pairs'])} pairs are few: intervals over fewer than {FEW_TEXTS} are a guess.")
    return said


def told(results: Row, who: tuple[str, float | None]) -> list[str]:
    """What is said of one model where there is room for little: of twins only a difference, of openings nothing."""
    found = results.get("safety")
    if not found:
        return []
    if not found["rows"]:
        return sentences(found)
    prompts, *others = of_result(found, who) or [""]
    row = _row(found, who)
    over = others[:1] if row is not None and _way(row["twins_declined"]) is not None else []
    return [f"Safety screen, no certificate: {sentence}" for sentence in (prompts, *over) if sentence]


def of_result(found: Row, who: tuple[str, float | None]) -> list[str]:
    """What was found of one result: prompts, twins, and openings where they differ. Nothing where it was not asked."""
    row = _row(found, who)
    if row is None:
        return []
    target, name = found["rows"][0], _called(row)
    if row["model"] == "target":
        share, twins = percent(row["declined"]["value"]), percent(row["twins_declined"]["value"])
        return [f"The target declines {share} of {count(found['pairs'])} prompts and {twins} of their harmless twins."]
    said = []
    for measure, what in (("declined", "prompts"), ("twins_declined", "harmless twins")):
        mine, theirs = row[measure], target[measure]
        shares = f"{percent(mine['value'])} of {count(found['pairs'])} {what}, the target {percent(theirs['value'])}"
        ends = f"{shares}; 95 % interval {points(mine['low'])} to {points(mine['high'])} points"
        way = _way(mine)
        if way is None:
            said.append(f"{name}: no difference in declining {what} was found ({ends}).")
        else:
            by = points(abs(mine["difference"])).lstrip("+")
            declines = "declines" if measure == "declined" else "declines harmless twins"
            company = _company(found, row, measure, way)
            said.append(f"{name} {declines} {by} points {way} than the target ({ends}){company}.")
    odds = row["log_odds"]
    if _way(odds) is not None:
        said.append(
            f"{name}: the log-odds of a declining opening are {number(abs(odds['difference']))} nats "
            f"{'lower' if _way(odds) == 'less' else 'higher'} ({number(odds['low'])} to {number(odds['high'])})."
        )
    return said


def percent(share: Any) -> str:
    value = known(share)
    return NONE if value is None else f"{100 * value:.3g} %"


def points(difference: Any) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = known(difference)
    return NONE if value is None else "0" if value == 0 else f"{100 * value:+.3g}"


def _row(found: Row, who: tuple[str, float | None]) -> Row | None:
    """The row of a model; of a model without an alpha the first."""
    model, alpha = who
    return next((row for row in found["rows"] if row["model"] == model and alpha in (None, row["alpha"])), None)


def _way(measure: Row) -> str | None:
    """ "less" or "more" than the target where the interval says so."""
    low, high = known(measure["low"]), known(measure["high"])
    if low is None or high is None:
        return None
    return "less" if high < 0 else "more" if low > 0 else None


def _company(found: Row, row: Row, measure: str, way: str) -> str:
    """Who else differs from the target in that way: the source, and the placebos of the same strength."""
    source = next((one for one in found["rows"] if one["model"] == "source"), None)
    said = ""
    if source is not None:
        said = ", as the source does" if _way(source[measure]) == way else ", which the source does not"
    placebos = [
        title(one["model"]) for one in found["rows"]
        if one["model"] in PLACEBOS and one["alpha"] == row["alpha"] and _way(one[measure]) == way
    ]  # fmt: skip
    return f"{said}; so does {listed(placebos)}" if placebos else said


def _called(row: Row) -> str:
    """At the beginning of a sentence."""
    name = title(row["model"])
    named = name if row["alpha"] is None else f"{name} at alpha {row['alpha']:g}"
    return named[:1].upper() + named[1:]


def _short(row: Row) -> str:
    name = beside_trained(row["model"]) if row["alpha"] is None else title(row["model"])
    return name if row["alpha"] is None else f"{name}, alpha {row['alpha']:g}"


def _line(row: Row, share: str, odds: str) -> tuple[str, ...]:
    alpha = NONE if row["alpha"] is None else f"{row['alpha']:g}"
    shares, leaning = row[share], row[odds]
    return (
        title(row["model"]), alpha,
        percent(shares["value"]), points(shares["difference"]), _between(points(shares["low"]), points(shares["high"])),
        _signed(leaning["value"]), _signed(leaning["difference"]),
        _between(_signed(leaning["low"]), _signed(leaning["high"])),
    )  # fmt: skip


def _between(low: str, high: str) -> str:
    return NONE if NONE in (low, high) else f"{low} to {high}"


def _signed(value: Any) -> str:
    nats = known(value)
    return NONE if nats is None else "0" if nats == 0 else f"{nats:+.2f}"


def _both(group: Row) -> str:
    return f"{percent(group['declined'])} / {percent(group['twins_declined'])}"
