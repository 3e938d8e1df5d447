"""The report of a run: report.json as the pipeline measured it, and the same as Markdown, one HTML page and figures.

The HTML page needs nothing but itself: style and figures are inside, nothing is fetched. Verdict, scores and what
every run has are shown here; the parts that stages handed in by `views`, each where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

import yaml

from tmerge_tui.engine.report import figures
from tmerge_tui.engine.report.names import rank, title
from tmerge_tui.engine.report.next_steps import as_options
from tmerge_tui.engine.report.svg import Figure
from tmerge_tui.engine.report.templates import asset, environment
from tmerge_tui.engine.report.verdict import beaten
from tmerge_tui.engine.report.views import compared, parts_of
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.quantities import NONE, bits, count, duration, finite, known, size
from tmerge_tui.run_folder import RunDir

Row = Mapping[str, Any]


def write_report(results: Mapping[str, Any], run: RunDir) -> None:
    """Writes report.json, report.md, report.html and figures/*.svg into the run folder, each whole or not at all.

    `results` is report.json, version 1, as a dictionary; NaN and Inf are written as null. Raises StorageError.
    """
    plain = finite(dict(results))
    shown = view(plain)
    with storage(run.path):
        run.figures.mkdir(parents=True, exist_ok=True)
        for figure in drawn(shown):
            write_atomic(run.figures / f"{figure.name}.svg", figure.standalone().encode())
        text = json.dumps(plain, ensure_ascii=False, indent=1, allow_nan=False)
        write_atomic(run.path / "report.json", text.encode())
        write_atomic(run.path / "report.md", _render("report.md.jinja", shown).encode())
        write_atomic(run.path / "report.html", _render("report.html.jinja", shown).encode())


def view(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show: every number already in words, empty where nothing was measured."""
    verdict = results["verdict"]
    scores, contrasts = results.get("scores") or [], results.get("contrasts") or []
    tensors = results.get("tensors") or {}
    return {
        "verdict": verdict,
        "pair": _pair(results.get("models") or {}),
        "badges": _badges(verdict, contrasts, results.get("selection")),
        "about": _about(results),
        "next": [(step["text"], as_options(step)) for step in results.get("next") or []],
        "models": _models(results.get("models") or {}),
        "scores": _scores(scores, contrasts, verdict.get("alpha")),
        "alpha_curve": figures.alpha_curve(scores),
        "holdout": _holdout(scores),
        "contrasts": [(f"{c['alpha']:g}", title(c["against"]), *compared(c)) for c in contrasts],
        "parts": parts_of(results),
        "timings": _timings(results.get("timings") or []),
        "memory": _memory(results.get("memory") or {}),
        "warnings": results.get("warnings") or [],
        "skipped": results.get("skipped") or [],
        "outputs": [
            (f"{o['alpha']:g}", f"{o['folder']}{' (trained)' if o.get('trained') else ''}")
            for o in results.get("output") or []
        ],
        "fused_tensors": tensors.get("fused") or [],
        "copied_tensors": count(tensors.get("copied")),
        "files": [(f["path"], size(f.get("bytes")), f.get("sha256", NONE)) for f in results.get("files") or []],
        "recipe": yaml.safe_dump(results.get("recipe") or {}, sort_keys=False, allow_unicode=True, width=100),
        "versions": results.get("versions") or {},
        "figure_css": asset("figures.css"),
    }


def drawn(shown: Mapping[str, Any]) -> list[Figure]:
    """Every figure of a view."""
    curve = shown["alpha_curve"]
    return [*([] if curve is None else [curve]), *(figure for part in shown["parts"] for figure in part["figures"])]


def _render(template: str, shown: Mapping[str, Any]) -> str:
    return environment().get_template(template).render(shown)


def _pair(models: Mapping[str, Row]) -> str:
    """`big-llama into small-qwen2`: a model of the Hub by its id, a folder by its last name; empty when unknown."""
    names = [str((models.get(role) or {}).get("name") or "") for role in ("source", "target")]
    short = [PureWindowsPath(name).name if name.startswith((".", "~")) or _absolute(name) else name for name in names]
    return " into ".join(short) if all(short) else ""


def _absolute(name: str) -> bool:
    return bool(PureWindowsPath(name).root or PureWindowsPath(name).drive)  # knows both kinds of slash


def _badges(verdict: Row, contrasts: Sequence[Row], selection: Row | None = None) -> list[tuple[str, str, str]]:
    """(style, sign, words); the sign says in black and white what the colour says.

    Better than the target is good news only where the placebos are beaten too.
    """
    beats = verdict.get("beats_placebos")
    helped = {
        True: ("good", "✓", "better than the target") if beats else ("open", "○", "better than the target"),
        False: ("bad", "✗", "worse than the target"),
        None: ("open", "?", "no measurable difference to the target"),
    }[verdict.get("helped")]
    if selection and selection["model"] == "target":
        return [("open", "○", "the target itself")]  # no placebo speaks of it
    if beats:
        placebos = ("good", "✓", "beats its placebos")
    elif contrasts and beats is not None:
        placebos = ("bad", "✗", "does not beat its placebos")
    else:
        placebos = ("open", "?", "no placebo measured")
    return [helped, placebos]


def _about(results: Row) -> list[tuple[str, str]]:
    recipe = results.get("recipe") or {}
    corpus = recipe.get("calibration") or {}
    return [
        ("made", str(results.get("created", NONE)).replace("T", " ")),
        ("tmerge", str(results.get("tmerge", NONE))),
        ("text", str(corpus.get("repo_id") or corpus.get("path") or NONE)),
        ("seed", str(recipe.get("seed", NONE))),
    ]


def _models(models: Mapping[str, Row]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for role in ("target", "source"):
        m = models.get(role)
        if not m:
            continue
        heads = f"{count(m.get('heads'))} / {count(m.get('kv_heads'))}"
        shape = (count(m.get("layers")), count(m.get("hidden")), heads, count(m.get("vocab")))
        dtype = str(m.get("dtype") or NONE).removeprefix("torch.")
        packed = f" from {m['precision']}" if m.get("precision") else ""
        weights = (count(m.get("parameters")), f"{dtype}{packed}")
        name = str(m.get("name") or NONE)
        rows.append((role, name, str(m.get("model_type") or NONE), *shape, *weights, str(m.get("licence") or NONE)))
    return rows


def _scores(scores: Sequence[Row], contrasts: Sequence[Row], best: float | None) -> list[dict[str, Any]]:
    """Target, source, then for each alpha the result beside its placebos, and how many of them it beats."""
    rows = []
    for s in sorted(scores, key=lambda s: (s["alpha"] is not None, s["alpha"] or 0, rank(s["model"]))):
        difference, between, outcome = compared(s)
        fused = s["model"] == "fused"
        beats, measured = beaten(contrasts, s["alpha"]) if fused else (0, 0)
        rows.append(
            {
                "model": title(s["model"]),
                "alpha": NONE if s["alpha"] is None else f"{s['alpha']:g}",
                "bits": bits(s.get("bits_per_byte")),
                "difference": difference,
                "interval": between,
                "outcome": "baseline" if s["model"] == "target" else outcome,
                "placebos": f"beats {beats} of {measured}" if measured else "",
                "strong": fused and s["alpha"] == best,
                "first": fused,
            }
        )
    return rows


def _holdout(scores: Sequence[Row]) -> str:
    row = next((s for s in scores if s.get("texts")), None)
    return f"{count(row['texts'])} texts, {size(row.get('bytes'))}" if row else ""


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
