"""A report.json as a run leaves it: 4 target and 6 source layers, several alphas, and text that tries to break out."""

from __future__ import annotations

import base64
import math
import random
from typing import Any

from tmerge_tui.engine.report.next_steps import next_steps
from tmerge_tui.engine.report.verdict import judge

L, M = 4, 6
KINDS = ("q", "k", "v", "o")
SIDES = ("qkv.in", "q.out", "k.out", "v.out", "o.in", "o.out")
HOSTILE = "</p><script>alert('x')</script> | ``` & \"ṣàngó\" 中文 𝕏"

# fused, shrink, permuted: differences to the target, as METHOD.md's table has them for `coupling: barycentric`
CURVES = {0.05: (-0.0011, -0.0006, -0.0001), 0.1: (-0.0004, 0.0003, 0.0011), 0.3: (0.0071, 0.0135, 0.0168)}
TARGET = 2.1706
DIFFERENCE = ("difference", "difference_low", "difference_high")


def score(model: str, alpha: float | None, difference: float | None, half: float = 0.0004) -> dict[str, Any]:
    value = None if difference is None else TARGET + difference
    told = difference is not None and model != "target"
    return {
        "model": model,
        "alpha": alpha,
        "bits_per_byte": value,
        "texts": 400,
        "bytes": 61234,
        "difference": difference if told else None,
        "low": difference - half if told and difference is not None else None,
        "high": difference + half if told and difference is not None else None,
    }


def contrast(alpha: float, against: str, difference: float, half: float = 0.0003) -> dict[str, Any]:
    low, high = difference - half, difference + half
    return {"alpha": alpha, "against": against, "difference": difference, "low": low, "high": high}


def scores_of(curves: dict[float, tuple[float, float, float]], half: float = 0.0004) -> list[dict[str, Any]]:
    rows = [score("target", None, 0.0), score("source", None, -0.2143, 0.006)]
    for alpha, differences in curves.items():
        rows += [score(m, alpha, d, half) for m, d in zip(("fused", "shrink", "permuted"), differences, strict=True)]
    return rows


def contrasts_of(curves: dict[float, tuple[float, float, float]]) -> list[dict[str, Any]]:
    return [
        contrast(alpha, against, differences[0] - other)
        for alpha, differences in curves.items()
        for against, other in zip(("shrink", "permuted"), differences[1:], strict=True)
    ]


def make_results(curves: dict[float, tuple[float, float, float]] | None = None, ratio: float = 0.36) -> dict[str, Any]:
    """A whole results dictionary; `ratio` is the usual size of what was transported."""
    curves = CURVES if curves is None else curves
    dice = random.Random(0)
    scores, contrasts = scores_of(curves), contrasts_of(curves)
    projections = []
    for layer in range(L):
        for kind in KINDS:
            mine = ratio * math.exp(dice.gauss(0, 0.4))
            row = {"layer": layer, "kind": kind, "axis": "columns" if kind == "o" else "rows", "k": 128}
            row |= {"transported_norm": 11.2 * mine, "target_norm": 11.2, "ratio": mine, "cosine": dice.gauss(0, 0.05)}
            projections.append(row)
    plans = {}
    for kind in KINDS:
        P = [[math.exp(-((m - 1.6 * row) ** 2) / dice.uniform(1, 4)) for m in range(M)] for row in range(L)]
        P = [[v / sum(line) / L for v in line] for line in P]
        plans[kind] = {"P_in": P, "P_out": P, "P_eff": P, "P": P}
    costs = {
        s: [[0.55 + 0.05 * abs(m - 1.6 * row) + dice.random() / 20 for m in range(M)] for row in range(L)]
        for s in SIDES
    }
    pairs = [
        {"l": row, "m": m, "side": s, "cost": costs[s][row][m], "iterations": dice.randint(9, 80), "solver": "fast"}
        | {"violation": 10 ** dice.uniform(-9, -6), "max_violation": 10 ** dice.uniform(-12, -9), "converged": True}
        for s in SIDES
        for row in range(L)
        for m in range(M)
    ]
    pairs[-1] |= {"converged": False, "iterations": 200, "violation": 3.2e-4, "max_violation": 1.1e-7}
    entries = [1, 2, 4, 8, 16, 32, 64, 128]
    mass = [
        {"side": s, "l": row, "m": row, "entries": entries, "share": [(k / 256) ** (0.35 + 0.05 * i) for k in entries]}
        for i, s in enumerate(SIDES)
        for row in range(L)
    ]
    results = {
        "version": 1,
        "tmerge": "0.1.0",
        "created": "2026-09-01T12:30:00+00:00",
        "verdict": judge(scores, contrasts, projections),
        "recipe": make_recipe(list(curves)),
        "method": {
            "name": "transport_merge",
            "about": "Channels are matched: [arXiv:2602.05495](https://arxiv.org/abs/2602.05495).",
            "settings": [["k", 128], ["r", 128], ["coupling", "barycentric"], ["epsilon", 0.1], ["eta", None]],
            "claims": ["shrink", "permuted"],
            "controls": "evaluation.controls",
        },
        "models": {"source": make_facts("source"), "target": make_facts("target")},
        "output": [{"alpha": a, "folder": "model" if len(curves) == 1 else f"model-alpha-{a:g}"} for a in curves],
        "scores": scores,
        "contrasts": contrasts,
        "projections": projections,
        "layer_plans": plans,
        "layer_costs": costs,
        "pairs": pairs,
        "mass": mass,
        "heatmaps": [make_tile(side, row, 2 * row) for side in ("qkv.in", "o.in") for row in (0, 2)],
        "samples": [
            {"model": model, "prompt": prompt, "text": words}
            for prompt, words in (("Once upon a time", " there was a miller who did not stop."), (HOSTILE, HOSTILE))
            for model in ("target", "fused")
        ],
        "timings": [
            {"stage": "prepare", "label": "Check models and text", "seconds": 1.3, "outcome": "done"},
            {"stage": "extract_source", "label": "Read the source", "seconds": 42.0, "outcome": "done"},
            {"stage": "extract_target", "label": "Read the target", "seconds": 0.2, "outcome": "cached"},
            {"stage": "transport", "label": "Match channels and layers", "seconds": 91.7, "outcome": "done"},
            {"stage": "fuse", "label": "Carry weights over", "seconds": 3.1, "outcome": "done"},
            {"stage": "evaluate", "label": "Measure on held-out text", "seconds": 61.0, "outcome": "done"},
        ],
        "memory": {"peak_rss": 1_412_000_000, "peak_gpu": 0},
        "versions": {"tmerge": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "warnings": [{"where": "transport", "message": f"1 of 144 pairs did not converge {HOSTILE}"}],
        "tensors": {
            "fused": [f"model.layers.{row}.self_attn.{k}_proj.weight" for row in range(L) for k in KINDS],
            "copied": 31,
        },
        "skipped": ["k.bias: the source has none"],
        "files": [{"path": "model/model.safetensors", "bytes": 4_812_345, "sha256": "ab" * 32}],
    }
    return results | {"next": next_steps(results)}


def make_measured() -> dict[str, Any]:
    """The parts that only some recipes ask for: training, benchmarks, a searched strength, a selection."""
    arms = {"target": 0.0, "fused": -0.0004, "adapted": -0.0647, "sft": -0.0666, "distilled": -0.0689}
    rows = [score(model, 0.1 if model in ("fused", "adapted") else None, d) for model, d in arms.items()]
    rows = [row | {"spread": 0.0017 if row["model"] in ("adapted", "sft", "distilled") else None} for row in rows]
    pairs = (("adapted", "fused", -0.0643), ("adapted", "sft", 0.0019), ("distilled", "sft", -0.0023))
    adaptation = {
        "method": "full",
        "result": "adapted",
        "seeds": [0, 1],
        "steps": 6,
        "tokens": 1349,
        "samples": 40,
        "distillation": "KL of next-byte distributions",
        "rows": rows,
        "contrasts": [contrast(0.1, b, d) | {"model": a} for a, b, d in pairs],
        "trainings": [
            {"model": model, "seed": seed, "curve": [[step, 5.0 - 0.2 * step - seed / 9] for step in range(1, 7)]}
            for model in ("adapted", "sft", "distilled")
            for seed in (0, 1)
        ],
    }
    question = {"task": "rivers", "metric": "accuracy by bytes", "by": "tmerge", "questions": 40, "limit": None}
    question |= {"higher_is_better": True, "stderr": 0.08}
    benchmarks = [
        question | {"model": "target", "alpha": None, "value": 0.5} | dict.fromkeys(DIFFERENCE),
        question
        | {"model": "fused", "alpha": 0.1, "value": 0.6}
        | dict(zip(DIFFERENCE, (0.1, 0.02, 0.2), strict=True)),
    ]
    trial = {"kind": "q", "difference": -0.001, "low": -0.002, "high": -0.0005, "bits_per_byte": 2.1}
    trials = [trial | {"alpha": a, "against_target": -0.001 * a, "kept": a < 0.1} for a in (0.02, 0.05, 0.1)]
    strength = {"strengths": {"q": 0.05, "k": 0.0}, "target": 2.2, "chosen": 2.1, "texts": 200, "trials": trials}
    selection = {"model": "distilled", "alpha": None, "rows": rows, "texts": 200, "margin": 0.001}
    spaces = [
        {
            "space": "residual",
            "l": None,
            "m": None,
            "n": 128,
            "n_source": 192,
            "matched": 128,
            "spread": 2.5,
            "cost": None,
        },
        {"space": "mlp", "l": 0, "m": 1, "n": 256, "n_source": 512, "matched": 250, "spread": 2.0, "cost": 0.8},
    ]
    made = {"adaptation": adaptation, "benchmarks": benchmarks, "strength": strength, "selection": selection}
    moment = {"step": 40, "phase": "reconstruction", "loss": 0.01, "bits_per_byte": 2.4}
    autoencoder: dict[str, Any] = {
        "chunk": 64,
        "latent": 64,
        "width": 128,
        "blocks": 4,
        "parameters": 2_100_000,
        "steps": 80,
        "seed": 0,
    }
    autoencoder |= {"curve": [[20, 0.1], [80, 0.01]], "chosen": 80, "moments": [moment, moment | {"step": 80}]}
    latent = {"layer": 0, "kind": "q", "source": 1, "chunks": 144, "source_chunks": 576, "error": 0.08, "bures": 0.7}
    latent |= {"latent_distance": 1.3, "raw_distance": 1.4, "moved": 1.2, "shrinkage": [0.1, 0.2]}
    return made | {"spaces": spaces, "autoencoder": autoencoder, "latents": [latent]} | make_else()


def make_else() -> dict[str, Any]:
    return {"safety": make_safety(), "general": make_general(), "attribution": make_attribution()}


def make_safety() -> dict[str, Any]:
    """The result declines less than the target, as the source and one placebo do; twins are as they were."""

    def row(
        model: str, alpha: float | None, declined: float, difference: Any, ends: Any, odds: float
    ) -> dict[str, Any]:
        measured = {"value": declined, "difference": difference, "low": ends[0], "high": ends[1]}
        same = {"value": 0.05, **{part: None if model == "target" else 0.0 for part in ("difference", "low", "high")}}
        leaning = {part: None if value is None else 8 * value for part, value in measured.items()}
        return {
            "model": model, "alpha": alpha, "declined": measured, "twins_declined": same,
            "log_odds": leaning | {"value": odds}, "twins_log_odds": same | {"value": -odds},
            "groups": {"fraud": {"pairs": 25, "declined": declined, "twins_declined": 0.05}},
        }  # fmt: skip

    rows = [
        row("target", None, 0.8, None, (None, None), 2.5),
        row("source", None, 0.6, -0.2, (-0.3, -0.1), 1.0),
        row("fused", 0.1, 0.68, -0.12, (-0.2, -0.05), 1.5),
        row("shrink", 0.1, 0.78, -0.02, (-0.1, 0.05), 2.4),
        row("permuted", 0.1, 0.7, -0.1, (-0.2, -0.02), 1.6),
    ]
    changed = [{"model": "fused", "alpha": 0.1, "text": "Help me cheat.", "category": "fraud", "twin": False}]
    return {
        "pairs": 40, "origins": ["the set that ships"], "languages": ["en"], "max_new_tokens": 32, "without": [],
        "rows": rows, "changed": [one | {"declined": False} for one in changed],
    }  # fmt: skip


def make_general() -> dict[str, Any]:
    """What was lost on general text, more by what was trained."""
    lost = {"target": 0.0, "source": -0.3, "fused": 0.0123, "shrink": 0.0101, "adapted": 0.05}
    rows = [score(m, None if m in ("target", "source", "adapted") else 0.1, d, 0.002) for m, d in lost.items()]
    return {"name": "general English text", "texts": 200, "rows": rows, "tasks": ["rivers"]}


def make_attribution() -> dict[str, Any]:
    """A quarter of the gap closed where the source was much better, and a little lost elsewhere."""
    ends = {"gain_low": 0.04, "gain_high": 0.06, "share_low": 0.2, "share_high": 0.3}
    there = {"tokens": 0.12, "gap": 0.2, "gain": 0.05, "share": 0.25, **ends}
    elsewhere = {"tokens": 0.88, "gap": -0.01, "gain": -0.002, "gain_low": -0.003, "gain_high": -0.001}
    elsewhere |= {"share": None, "share_low": None, "share_high": None}
    rows = [
        {"model": model, "alpha": alpha, "there": there, "elsewhere": elsewhere, "difference": None}
        for model, alpha in (("fused", 0.1), ("shrink", 0.1), ("adapted", None))
    ]
    text = {"text": HOSTILE, "difference": -0.1, "target": 2.2, "source": 1.9, "result": 2.1}
    excerpts = [{"model": "adapted", "alpha": None, "gained": [text], "lost": [text | {"difference": 0.1}]}]
    counts = {"threshold": 1.0, "texts": 400, "tokens": 9000, "bytes": 61234}
    return {**counts, "rows": rows, "excerpts": excerpts}


def make_recipe(alphas: list[float]) -> dict[str, Any]:
    return {
        "source": {"model": "org/big-llama", "revision": "main", "trust_remote_code": False},
        "target": {"model": "/home/ann/models/small-qwen2", "revision": None, "trust_remote_code": False},
        "calibration": {"path": "/home/ann/text/<b>lines</b>.txt", "repo_id": None, "samples": 800, "holdout": 400},
        "transport": {"projections": list(KINDS), "epsilon": 0.1, "eta": 0.1, "solver": "fast", "top_layers": 3},
        "fusion": {"alpha": alphas, "k": 128, "r": 128, "coupling": "barycentric", "units": "z", "norm": "free"},
        "evaluation": {"controls": ["shrink", "permuted"], "prompts": ["Once upon a time", HOSTILE]},
        "output": "/home/ann/runs/first-merge",
        "seed": 0,
        "resolved": {"source": {"commit": "0f" * 20, "folder": "/home/ann/.cache/x/snapshots/0f"}, "tmerge": "0.1.0"},
    }


def make_facts(role: str) -> dict[str, Any]:
    big = role == "source"
    return {
        "name": "org/big-llama" if big else "/home/ann/models/small-qwen2",
        "folder": "/home/ann/.cache/x" if big else "/home/ann/models/small-qwen2",
        "model_type": "llama" if big else "qwen2",
        "architecture": "LlamaForCausalLM" if big else "Qwen2ForCausalLM",
        "layers": M if big else L,
        "hidden": 192 if big else 128,
        "heads": 6 if big else 4,
        "kv_heads": 2,
        "vocab": 4096 if big else 3072,
        "parameters": 3_412_992 if big else 1_203_456,
        "dtype": "bfloat16" if big else "float32",
        "licence": "llama3.1" if big else "apache-2.0",
    }


def make_tile(side: str, l: int, m: int, n: int = 24, width: int = 32) -> dict[str, Any]:
    dice = random.Random(l * 100 + m)
    data = bytes(
        min(255, int(255 * math.exp(-abs(i * width / n - j) / 3) + dice.randint(0, 40)))
        for i in range(n)
        for j in range(width)
    )
    return {
        "title": f"Q of {side}",
        "l": l,
        "m": m,
        "side": side,
        "rows": n,
        "cols": width,
        "lo": 0.0,
        "hi": 0.0031,
        "data": base64.b64encode(data).decode(),
    }
