"""What the report shows of each part: a table from its key in report.json to a view, and the views of measurements.

A view takes the part's data and returns what its two templates show, `assets/templates/parts/KEY.html.jinja` and
`KEY.md.jinja`, every number already in words; None when there is nothing to show. Its drawings are under "figures". A
new measurement is a function here (or in a file beside), a line in VIEWS and two templates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tmerge_tui.engine.report import besides_views, latent_views, plan_views, space_views
from tmerge_tui.engine.report.alpha_search_figure import strength_curve
from tmerge_tui.engine.report.names import OUTCOMES, beside_trained, title
from tmerge_tui.engine.report.safety_view import safety
from tmerge_tui.engine.report.training_figure import training_curves
from tmerge_tui.engine.report.training_verdict import facts
from tmerge_tui.engine.report.verdict import Comparison, benchmark_better
from tmerge_tui.quantities import NONE, bits, count, interval, known, signed

Row = Mapping[str, Any]
Shown = dict[str, Any]


@dataclass(frozen=True)
class View:
    title: str  # in the list of contents
    of: Callable[[Any], Shown | None]


def samples(rows: Sequence[Row]) -> Shown:
    """Prompts in their order, and what each model made of them."""
    prompts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        alpha = f", alpha {row['alpha']:g}" if known(row.get("alpha")) is not None else ""
        prompts[row["prompt"]].append((f"{row['model']}{alpha}", row["text"]))
    return {"prompts": list(prompts.items())}


def strength(found: Row) -> Shown:
    """What `alpha: auto` chose, and the trials it chose from."""
    trials = [
        (t["kind"], f"{t['alpha']:g}", bits(t["bits_per_byte"]), *compared(t)[:2], _kept(t, found["texts"]))
        for t in found["trials"]
    ]
    return {
        "chosen": [(kind, f"{alpha:g}") for kind, alpha in found["strengths"].items()],
        "trials": trials,
        "told": f"{count(found['texts'])} texts, {bits(found['target'])} bits per byte before, "
        f"{bits(found['chosen'])} after",
        "figures": [strength_curve(found["trials"])],
    }


def _kept(trial: Row, texts: int) -> str:
    early = trial.get("texts", texts)
    return "kept" if trial["kept"] else "no" if early == texts else f"no, after {count(early)} texts"


def benchmarks(rows: Sequence[Row]) -> Shown:
    """Better or worse is as the metric has it; no interval, no word."""
    shown = []
    for row in rows:
        ends = row["difference_low"], row["difference_high"]
        named = f"{row['task']}, {row['metric']}" + (" (partial)" if row["limit"] is not None else "")
        alpha = NONE if row["alpha"] is None else f"{row['alpha']:g}"
        error = "" if row["stderr"] is None else f" ± {bits(row['stderr'])}"
        outcome = NONE if known(ends[0]) is None else OUTCOMES[benchmark_better(row)]
        shown.append(
            (
                named,
                title(row["model"]),
                alpha,
                count(row["questions"]),
                bits(row["value"]) + error,
                signed(row["difference"]),
                interval(*ends),
                "baseline" if row["model"] == "target" else outcome,
            )
        )
    partial = next((row["limit"] for row in rows if row["limit"] is not None), None)
    return {"rows": shown, "partial": partial, "by": list(dict.fromkeys(row["by"] for row in rows))}


def adaptation(found: Row) -> Shown:
    """Trained models, who beats whom, and how was trained."""
    rows = []
    for row in found["rows"]:
        difference, between, outcome = compared(row)
        rows.append(
            (
                beside_trained(row["model"]),
                NONE if row["alpha"] is None else f"{row['alpha']:g}",
                bits(row["bits_per_byte"]),
                NONE if row["spread"] is None else f"{row['spread']:.4f}",
                difference,
                between,
                "baseline" if row["model"] == "target" else outcome,
            )
        )
    contrasts = [(beside_trained(c["model"]), beside_trained(c["against"]), *compared(c)) for c in found["contrasts"]]
    return {
        "rows": rows,
        "contrasts": contrasts,
        "facts": facts(found),
        "figures": list(training_curves(found.get("trainings") or [])),
    }


def compared(row: Row) -> tuple[str, str, str]:
    """(difference, interval, outcome in a word)"""
    found = Comparison.of(row)
    outcome = NONE if found.difference is None else OUTCOMES[found.better]
    return signed(found.difference), interval(found.low, found.high), outcome


def selection(found: Row) -> Shown:
    """What `select: validation` chose from, by their scores on validation text."""
    bound = found.get("bound")
    rows = [
        (
            beside_trained(row["model"]),
            NONE if row["alpha"] is None else f"{row['alpha']:g}",
            bits(row["bits_per_byte"]),
            *compared(row)[:2],
            *([] if bound is None else [_bounded(row)]),
            "chosen" if (row["model"], row["alpha"]) == (found["model"], found["alpha"]) else "",
        )
        for row in found["rows"]
    ]
    head = ["candidate", "alpha", "bits per byte", "difference", "95 % interval"]
    head += [*([] if bound is None else ["lost on general text"]), ""]
    told = (
        f"Scores of {count(found['texts'])} validation texts, which nothing was aligned, trained or measured on; the "
        f"target stays unless a candidate is better by {found['margin']:g} bits per byte."
    )
    if bound is not None:
        told += (
            f" None that loses more than {bound:g} bits per byte on {count(found['general_texts'])} general texts was "
            "chosen."
        )
    return {"rows": rows, "told": told, "head": head}


def _bounded(row: Row) -> str:
    """What a candidate loses on general text, and whether that breaks the bound."""
    lost = row.get("general")
    if lost is None:
        return NONE
    return f"{signed(lost['difference'])} ({interval(lost['low'], lost['high'])})" + (
        "" if lost["kept"] else ", too much"
    )


VIEWS = {  # in the report's order
    "selection": View("Which model", selection),
    "general": View("General text", besides_views.general),
    "attribution": View("Where the gain is", besides_views.attribution),
    "benchmarks": View("Benchmarks", benchmarks),
    "safety": View("Safety", safety),
    "strength": View("Strength", strength),
    "adaptation": View("Training", adaptation),
    "samples": View("Samples", samples),
    "autoencoder": View("Autoencoder", latent_views.autoencoder),
    "latents": View("Latent space", latent_views.latents),
    "projections": View("What moved", plan_views.projections),
    "layer_plans": View("Layers", plan_views.layer_plans),
    "spaces": View("Spaces", space_views.spaces),
    "layer_costs": View("Layer costs", plan_views.layer_costs),
    "mass": View("Transport mass", plan_views.mass),
    "heatmaps": View("Feature plans", plan_views.heatmaps),
    "pairs": View("Convergence", plan_views.pairs),
}


def parts_of(results: Mapping[str, Any]) -> list[Shown]:
    """Each part of report.json that has something to show: {"key", "title", "figures", ...what its view gives}."""
    parts = []
    for key, view in VIEWS.items():
        shown = view.of(results[key]) if results.get(key) else None
        if shown is not None:
            drawn = [figure for figure in shown.pop("figures", ()) if figure is not None]
            parts.append({"key": key, "title": view.title, "figures": drawn, **shown})
    return parts
