"""The report of a run: report.json as the pipeline measured it, and the same as Markdown, one HTML page and figures.

The HTML page needs nothing but itself: style and figures are inside, nothing is fetched. Every part says so when a run
has nothing for it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from tmerge_tui.engine.report import figures
from tmerge_tui.engine.report.alpha_search_figure import strength_curve
from tmerge_tui.engine.report.svg import Figure
from tmerge_tui.engine.report.templates import asset, environment
from tmerge_tui.engine.report.training_verdict import view_adaptation
from tmerge_tui.engine.report.verdict import Comparison, benchmark_better
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.quantities import NONE, bits, count, duration, finite, interval, known, number, quantile, signed, size
from tmerge_tui.run_folder import RunDir

Row = Mapping[str, Any]

MODELS = {
    "target": "target",
    "source": "source",
    "fused": "fused",
    "shrink": "placebo: rows shrunk",
    "permuted": "placebo: source permuted",
}
SIZES = ("transported_norm", "target_norm", "ratio", "cosine")
VIOLATIONS = ("violation", "max_violation")
OUTCOMES = {True: "better", False: "worse", None: "cannot tell"}


def write_report(results: Mapping[str, Any], run: RunDir) -> None:
    """Writes report.json, report.md, report.html and figures/*.svg into the run folder, each whole or not at all.

    `results` is report.json, version 1, as a dictionary; NaN and Inf are written as null. Raises StorageError.
    """
    plain = finite(dict(results))
    shown = view(plain)
    drawn = [figure for group in shown["figures"].values() for figure in group]
    with storage(run.path):
        run.figures.mkdir(parents=True, exist_ok=True)
        for figure in drawn:
            write_atomic(run.figures / f"{figure.name}.svg", figure.standalone().encode())
        text = json.dumps(plain, ensure_ascii=False, indent=1, allow_nan=False)
        write_atomic(run.path / "report.json", text.encode())
        write_atomic(run.path / "report.md", _render("report.md.jinja", shown).encode())
        write_atomic(run.path / "report.html", _render("report.html.jinja", shown).encode())


def view(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show: every number already in words, every part present, empty where nothing was measured."""
    verdict = results["verdict"]
    projections = results.get("projections") or []
    return {
        "verdict": verdict,
        "badges": _badges(verdict, results.get("contrasts") or []),
        "about": _about(results),
        "models": _models(results.get("models") or {}),
        "scores": _scores(results.get("scores") or [], verdict.get("alpha")),
        "holdout": _holdout(results.get("scores") or []),
        "contrasts": [
            (f"{c['alpha']:g}", MODELS.get(c["against"], c["against"]), *_difference(c))
            for c in results.get("contrasts") or []
        ],
        "benchmarks": _benchmarks(results.get("benchmarks") or []),
        "strength": _strength(results.get("strength")),
        "adaptation": view_adaptation(results.get("adaptation")),
        "samples": _samples(results.get("samples") or []),
        "sizes": _sizes(projections),
        "projections": [
            (p["layer"], p["kind"], p.get("axis", NONE), count(p.get("k")), *(number(p.get(name)) for name in SIZES))
            for p in projections
        ],
        "convergence": _convergence(results.get("pairs") or []),
        "timings": _timings(results.get("timings") or []),
        "memory": _memory(results.get("memory") or {}),
        "warnings": results.get("warnings") or [],
        "skipped": results.get("skipped") or [],
        "outputs": [
            (f"{o['alpha']:g}", f"{o['folder']}{' (trained)' if o.get('trained') else ''}")
            for o in results.get("output") or []
        ],
        "fused_tensors": (results.get("tensors") or {}).get("fused") or [],
        "copied_tensors": count((results.get("tensors") or {}).get("copied")),
        "files": [(f["path"], size(f.get("bytes")), f.get("sha256", NONE)) for f in results.get("files") or []],
        "recipe": yaml.safe_dump(results.get("recipe") or {}, sort_keys=False, allow_unicode=True, width=100),
        "versions": results.get("versions") or {},
        "figures": draw(results),
        "figure_css": asset("figures.css"),
    }


def draw(results: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """The figures by section; a section without data has an empty list."""
    plans = results.get("layer_plans") or {}
    costs = results.get("layer_costs") or {}
    groups: dict[str, Iterable[Figure | None]] = {
        "alpha": [figures.alpha_curve(results.get("scores") or [])],
        "strength": [strength_curve((results.get("strength") or {}).get("trials") or [])],
        "transported": [figures.transported(results.get("projections") or [])],
        "layer_plans": [figures.layer_plan(kind, plan["P"]) for kind, plan in plans.items()],
        "layer_costs": [figures.layer_cost(side, cost) for side, cost in costs.items()],
        "mass": [figures.mass_share(results.get("mass") or [])],
        "plans": [figures.feature_plan(tile) for tile in results.get("heatmaps") or []],
    }
    return {section: [f for f in group if f is not None] for section, group in groups.items()}


def _render(template: str, shown: Mapping[str, Any]) -> str:
    return environment().get_template(template).render(shown)


def _badges(verdict: Row, contrasts: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(style, sign, words); the sign says in black and white what the colour says."""
    helped = {
        True: ("good", "✓", "better than the target"),
        False: ("bad", "✗", "worse than the target"),
        None: ("open", "?", "no measurable difference to the target"),
    }[verdict.get("helped")]
    if verdict.get("beats_placebos"):
        placebos = ("good", "✓", "beats its placebos")
    elif contrasts:
        placebos = ("bad", "✗", "does not beat its placebos")
    else:
        placebos = ("open", "?", "no placebo measured")
    return [helped, placebos]


def _about(results: Row) -> list[tuple[str, str]]:
    recipe = results.get("recipe") or {}
    corpus = recipe.get("calibration") or {}
    facts = [
        ("made", str(results.get("created", NONE)).replace("T", " ")),
        ("tmerge", str(results.get("tmerge", NONE))),
        ("text", str(corpus.get("repo_id") or corpus.get("path") or NONE)),
        ("seed", str(recipe.get("seed", NONE))),
    ]
    return facts


def _models(models: Mapping[str, Row]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for role in ("target", "source"):
        m = models.get(role)
        if not m:
            continue
        heads = f"{count(m.get('heads'))} / {count(m.get('kv_heads'))}"
        shape = (count(m.get("layers")), count(m.get("hidden")), heads, count(m.get("vocab")))
        weights = (count(m.get("parameters")), str(m.get("dtype") or NONE).removeprefix("torch."))
        name = str(m.get("name") or NONE)
        rows.append((role, name, str(m.get("model_type") or NONE), *shape, *weights, str(m.get("licence") or NONE)))
    return rows


def _difference(row: Row) -> tuple[str, str, str]:
    """(difference, interval, outcome in a word)"""
    compared = Comparison.of(row)
    outcome = NONE if compared.difference is None else OUTCOMES[compared.better]
    return signed(compared.difference), interval(compared.low, compared.high), outcome


def _scores(scores: Sequence[Row], best: float | None) -> list[dict[str, Any]]:
    """Target, source, then for each alpha the result beside its placebos."""
    order = list(MODELS)
    rows = []
    for s in sorted(
        scores,
        key=lambda s: (
            s["alpha"] is not None,
            s["alpha"] or 0,
            order.index(s["model"]) if s["model"] in order else len(order),
        ),
    ):
        difference, between, outcome = _difference(s)
        rows.append(
            {
                "model": MODELS.get(s["model"], s["model"]),
                "alpha": NONE if s["alpha"] is None else f"{s['alpha']:g}",
                "bits": bits(s.get("bits_per_byte")),
                "difference": difference,
                "interval": between,
                "outcome": "baseline" if s["model"] == "target" else outcome,
                "strong": s["model"] == "fused" and s["alpha"] == best,
                "first": s["model"] == "fused",
            }
        )
    return rows


def _strength(strength: Row | None) -> dict[str, Any] | None:
    """What `alpha: auto` chose, and the trials it chose from; None when the recipe gave alpha."""
    if strength is None:
        return None
    chosen = [(kind, f"{alpha:g}") for kind, alpha in strength["strengths"].items()]
    trials = [
        (t["kind"], f"{t['alpha']:g}", bits(t["bits_per_byte"]), *_difference(t)[:2], "kept" if t["kept"] else "no")
        for t in strength["trials"]
    ]
    told = f"{bits(strength['target'])} bits per byte before, {bits(strength['chosen'])} after"
    return {"chosen": chosen, "trials": trials, "told": f"{count(strength['texts'])} texts, {told}"}


def _benchmarks(rows: Sequence[Row]) -> dict[str, Any]:
    """The table of benchmarks, and which of its rows are partial. A difference is better or worse as its metric has
    it; no interval, no word."""
    shown = []
    for row in rows:
        ends = row["difference_low"], row["difference_high"]
        named = f"{row['task']}, {row['metric']}" + (" (partial)" if row["limit"] is not None else "")
        model = MODELS.get(row["model"], row["model"])
        alpha = NONE if row["alpha"] is None else f"{row['alpha']:g}"
        error = "" if row["stderr"] is None else f" ± {bits(row['stderr'])}"
        told = bits(row["value"]) + error, signed(row["difference"]), interval(*ends)
        outcome = (
            "baseline"
            if row["model"] == "target"
            else OUTCOMES[benchmark_better(row)]
            if known(ends[0]) is not None
            else NONE
        )
        shown.append((named, model, alpha, count(row["questions"]), *told, outcome))
    partial = next((row["limit"] for row in rows if row["limit"] is not None), None)
    return {"rows": shown, "partial": partial, "by": list(dict.fromkeys(row["by"] for row in rows))}


def _holdout(scores: Sequence[Row]) -> str:
    row = next((s for s in scores if s.get("texts")), None)
    return f"{count(row['texts'])} texts, {size(row.get('bytes'))}" if row else ""


def _samples(samples: Sequence[Row]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(prompt, [(model, text), ...]) in the order of the prompts."""
    prompts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for s in samples:
        alpha = f", alpha {s['alpha']:g}" if known(s.get("alpha")) is not None else ""
        prompts[s["prompt"]].append((f"{s['model']}{alpha}", s["text"]))
    return list(prompts.items())


def _sizes(projections: Sequence[Row]) -> list[tuple[str, ...]]:
    """Per kind: projections, then median, lowest and highest ratio, median cosine."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for p in projections:
        kinds[p["kind"]].append(p)
    rows: list[tuple[str, ...]] = []
    for kind, mine in kinds.items():
        ratios = [r for r in (known(p.get("ratio")) for p in mine) if r is not None]
        cosines = [c for c in (known(p.get("cosine")) for p in mine) if c is not None]
        spread = f"{number(min(ratios))} to {number(max(ratios))}" if ratios else NONE
        middle = number(quantile(ratios, 0.5)) if ratios else NONE
        rows.append((kind, count(len(mine)), middle, spread, number(quantile(cosines, 0.5)) if cosines else NONE))
    return rows


def _convergence(pairs: Sequence[Row]) -> list[tuple[str, ...]]:
    """Per side: converged of all, iterations (median, 90 %, most), worst violation relative and as the paper has it."""
    sides: dict[str, list[Row]] = defaultdict(list)
    for p in pairs:
        sides[p["side"]].append(p)
    rows: list[tuple[str, ...]] = []
    for side, mine in sides.items():
        done = sum(bool(p["converged"]) for p in mine)
        steps = [p["iterations"] for p in mine]
        worst = [max((v for v in (known(p.get(n)) for p in mine) if v is not None), default=None) for n in VIOLATIONS]
        solvers = ", ".join(sorted({str(p.get("solver", NONE)) for p in mine}))
        quantiles = (count(quantile(steps, q)) for q in (0.5, 0.9, 1))
        rows.append((side, f"{count(done)} of {count(len(mine))}", *quantiles, *map(number, worst), solvers))
    return rows


def _timings(timings: Sequence[Row]) -> list[tuple[str, str, str, float]]:
    """(label, duration, outcome, percent of the longest)"""
    seconds = [known(t.get("seconds")) or 0.0 for t in timings]
    longest = max(seconds, default=0) or 1
    return [
        (t.get("label") or t["stage"], duration(s), t.get("outcome", NONE), round(100 * s / longest, 1))
        for t, s in zip(timings, seconds, strict=True)
    ]


def _memory(memory: Row) -> list[tuple[str, str]]:
    words = {"peak_rss": "main memory", "peak_gpu": "GPU memory"}
    return [(words[name], size(memory[name])) for name in words if memory.get(name)]
