"""compare.json of a comparison of methods, and the same as Markdown and one HTML page to decide from.

The first line says whether anything beats its placebos. A method counts only when the whole interval against the target
and against every one of its placebos is below 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tmerge_tui.engine.report.names import OUTCOMES, title
from tmerge_tui.engine.report.templates import asset, environment
from tmerge_tui.engine.report.verdict import Comparison
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.quantities import NONE, bits, duration, finite, interval, listed, signed, size
from tmerge_tui.recipe.evaluation import EVERY
from tmerge_tui.run_folder import RunDir

Row = Mapping[str, Any]
NOTHING = "Nothing beats its placebos: no method here carries over anything that its placebos do not."


def write_comparison(results: Mapping[str, Any], run: RunDir) -> str:
    """Writes compare.json, compare.md and compare.html, each whole or not at all; the headline. Raises StorageError.

    `results` has "methods" (a row each, with "reason" where it could not run), "best" on validation text and "recipe".
    """
    plain = finite({**results, "headline": headline(results["methods"])})
    shown = view(plain)
    with storage(run.path):
        write_atomic(run.path / "compare.json", json.dumps(plain, ensure_ascii=False, indent=1).encode())
        for name in ("compare.md", "compare.html"):
            write_atomic(run.path / name, environment().get_template(f"{name}.jinja").render(shown).encode())
    return str(plain["headline"])


def headline(rows: Sequence[Row]) -> str:
    """Who beats target and placebos, the best on validation text first; or that nobody does."""
    good = sorted((row for row in rows if _carries(row)), key=lambda row: row["validation"])
    if not good:
        alone = [row["method"] for row in rows if row["reason"] is None and row["verdict"]["beats_placebos"]]
        does = "beats its placebos" if len(alone) == 1 else "beat their placebos"
        return f"Nothing beats both the target and its placebos: {listed(alone)} {does} alone." if alone else NOTHING
    first, others = good[0], [row["method"] for row in good[1:]]
    score, target = _score(first, "fused"), _score(first, "target")
    also = f"; so {'do' if len(others) > 1 else 'does'} {listed(others)}" if others else ""
    return (
        f"{first['method']} beats its placebos: {bits(score['bits_per_byte'])} bits per byte against the target's "
        f"{bits(target['bits_per_byte'])} ({Comparison.of(score)}){also}."
    )


def view(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show, every number in words."""
    rows = results["methods"]
    ran = [row for row in rows if row["reason"] is None]
    names = [str(ran[0]["models"][role]["name"]) for role in ("source", "target")]
    return {
        "headline": results["headline"],
        "pair": " into ".join(name.replace("\\", "/").rstrip("/").rpartition("/")[2] for name in names),
        "sentences": list(_sentences(results, ran)),
        "methods": [_line(row) for row in ran],
        "best": results["best"],
        "placebos": [line for row in ran for line in _placebos(row)],
        "references": [
            (title(model), bits(score["bits_per_byte"]), signed(score["difference"]))
            for model in ("target", "source")
            if (score := _score(ran[0], model))
        ],
        "refused": [(row["method"], row["reason"]) for row in rows if row["reason"] is not None],
        "about": [(row["method"], row["about"]) for row in rows],
        "texts": ran[0]["texts"],
        "recipe": yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True, width=100),
        "figure_css": asset("figures.css"),
    }


def _carries(row: Row) -> bool:
    return row["reason"] is None and row["verdict"]["helped"] is True and row["verdict"]["beats_placebos"]


def _score(row: Row, model: str) -> Row:
    return next((score for score in row["scores"] if score["model"] == model), {})


def _sentences(results: Mapping[str, Any], ran: Sequence[Row]) -> Iterator[str]:
    best = next(row for row in ran if row["method"] == results["best"])
    if not best["alpha"]:
        yield "No strength of any method helped on validation text: model/ is the target itself."
    else:
        yield f"Best on validation text is {best['method']}; model/ and report.html are its."
    for row in ran:
        yield f"{row['method']}: {row['verdict']['headline']}"
    source = _score(ran[0], "source")
    if source and Comparison.of(source).better is not True:
        yield "The source is not better than the target on this text: there is little to carry over."


def _line(row: Row) -> tuple[str, ...]:
    """Method, strength, bits, difference, interval, against the target, placebos beaten, time, memory."""
    score = _score(row, "fused")
    outcomes = [Comparison.of(contrast).better for contrast in row["contrasts"]]
    beaten = f"{sum(one is True for one in outcomes)} of {len(row['claims'])}"
    memory = size(row["gpu"] or row["rss"])
    return (
        row["method"], _strength(row), bits(score.get("bits_per_byte")), signed(score.get("difference")),
        interval(score.get("low"), score.get("high")), OUTCOMES[row["verdict"]["helped"]], beaten,
        NONE if row["seconds"] is None else duration(row["seconds"]), memory,
    )  # fmt: skip


def _strength(row: Row) -> str:
    if not row["alpha"]:
        return "0: nothing helped"
    strengths = row["strength"]["strengths"]
    if list(strengths) == [EVERY]:
        return f"{row['alpha']:g}"
    return ", ".join(f"{kind} {alpha:g}" for kind, alpha in strengths.items() if alpha)


def _placebos(row: Row) -> Iterator[tuple[str, ...]]:
    for contrast in row["contrasts"]:
        score = _score(row, contrast["against"])
        outcome = OUTCOMES[Comparison.of(contrast).better]
        between = interval(contrast["low"], contrast["high"])
        placebo = title(contrast["against"]).removeprefix("placebo: ")
        yield row["method"], placebo, bits(score.get("bits_per_byte")), signed(contrast["difference"]), between, outcome
