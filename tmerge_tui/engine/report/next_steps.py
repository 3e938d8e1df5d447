"""What to change next, given the numbers of report.json: a few plain sentences, each with the `--set` that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from tmerge_tui.engine.report.besides import result_of, row_of
from tmerge_tui.engine.report.verdict import FEW_TEXTS, SHRINKAGE, Comparison, median_ratio
from tmerge_tui.quantities import count, known, number

MOST = 4
WEAK = (0.02, 0.05, 0.1)  # alphas to fall back to
TEXTS = 400  # that an interval can be trusted on, the default of calibration.holdout
Results = Mapping[str, Any]
Step = dict[str, Any]


def next_steps(results: Results) -> list[Step]:
    """`next` of report.json: [{"text", "set": ["section.key=value", ...]}], what matters most first, `MOST` at most.

    `set` is what `tmerge --batch recipe.yaml --set ...` takes; empty where no option does it.
    """
    return list(_steps(results))[:MOST]


def _steps(results: Results) -> Iterator[Step]:
    verdict, recipe = results["verdict"], results.get("recipe") or {}
    scores = results.get("scores") or []
    fusion = recipe.get("fusion") or {}
    if not scores:
        return
    fused = [s for s in scores if s["model"] == "fused" and s["alpha"]]
    broken = [s for s in fused if known(s.get("bits_per_byte")) is None]
    if broken and len(broken) == len(fused):
        yield _step("Every strength broke the model: try weaker ones.", f"fusion.alpha={_list(WEAK)}")
        return
    if verdict.get("helped") and verdict.get("beats_placebos"):
        yield from _confirm(results, recipe)
        return
    yield from _controls(results)
    yield from _movement(results, fusion)
    yield from _training(results)
    yield from _strength(verdict, fused, fusion)
    yield from _source(scores)
    yield from _text(verdict, fused, recipe)


def as_options(step: Mapping[str, Any]) -> str:
    """`--set fusion.alpha=auto`: the changes of one step as a shell takes them; empty when it has none."""
    return " ".join(f"--set {shlex.quote(change)}" for change in step["set"])


def _step(text: str, *changes: str) -> Step:
    return {"text": text, "set": list(changes)}


def _list(values: Any) -> str:
    return "[" + ",".join(f"{value:g}" for value in values) + "]"


def _confirm(results: Results, recipe: Results) -> Iterator[Step]:
    """A gain that beats its placebos: measured again, where it counts, and trained on."""
    seed = int(recipe.get("seed") or 0) + 1
    alpha = results["verdict"].get("alpha")
    again = [f"seed={seed}"] if alpha is None else [f"seed={seed}", f"fusion.alpha={alpha:g}"]
    yield _step("Confirm it: the same merge, aligned and measured on another split of the text.", *again)
    if not results.get("benchmarks"):
        yield _step(
            "See whether it shows in answers, not only in bits: a file of multiple-choice questions.",
            "evaluation.choices=[questions.jsonl]",
        )
    general = results.get("general") or {}
    lost = row_of(general.get("rows") or [], result_of(results["verdict"], results))
    if lost is not None and Comparison.of(lost).better is False:
        yield _step(
            "It lost on general text: let validation text choose, among what loses less.",
            "select=validation",
            "evaluation.general.bound=0.01",
        )
    target = (results.get("models") or {}).get("target") or {}
    if target.get("chat_template") and not results.get("safety"):
        yield _step(
            "Before it is handed on, see whether it still declines what the target declines: a screen of prompts.",
            "evaluation.safety=true",
        )
    yield from _training(results)


def _controls(results: Results) -> Iterator[Step]:
    method = results["method"]
    if not set(method["claims"]) <= {contrast["against"] for contrast in results["contrasts"]}:
        yield _step(
            "Measure every placebo: without them nothing can be said about transfer.",
            f"{method['controls']}=[{','.join(method['claims'])}]",
        )


def _movement(results: Results, fusion: Results) -> Iterator[Step]:
    """Next to nothing was transported."""
    ratio = median_ratio(results.get("projections") or [])
    if ratio is not None and ratio < SHRINKAGE and fusion.get("coupling") == "plan":
        yield _step(
            f"Carry weights at their own scale: with coupling: plan only {number(ratio)} of the target's norm moved, "
            "so rows were shrunk and little else.",
            "fusion.coupling=barycentric",
        )


def _strength(verdict: Results, fused: list[Results], fusion: Results) -> Iterator[Step]:
    if list(fusion.get("alpha") or []) == ["auto"] or not fused:
        return
    alphas = [s["alpha"] for s in fused]
    if verdict.get("helped") is False and min(alphas) > WEAK[0]:
        weaker = [alpha for alpha in WEAK if alpha < min(alphas)]
        yield _step("The merge hurt: try weaker strengths.", f"fusion.alpha={_list(weaker)}")
    else:
        yield _step(
            "Let validation text choose a strength for each kind of projection; what does not help stays at 0.",
            "fusion.alpha=auto",
        )


def _training(results: Results) -> Iterator[Step]:
    """Training after the merge, and the source as a teacher where it knows more."""
    adaptation = results.get("adaptation")
    knows = _source_better(results.get("scores") or [])
    if not adaptation:
        compare = "[sft,distill]" if knows else "[sft]"
        teacher = " and with learning from the source's own predictions (distillation)" if knows else ""
        yield _step(
            f"Train after the merge, beside plain fine-tuning on the same text{teacher}: most of what a pair can gain "
            "comes from there.",
            f"adaptation.compare={compare}",
        )
    elif not adaptation.get("distillation") and knows:
        yield _step(
            "Distil: the source reads this text better than the target, and its predictions carry that over.",
            "adaptation.compare=[sft,distill]",
        )
    elif adaptation and len(adaptation.get("seeds") or []) < 3:
        yield _step(
            "Train with more seeds, so that chance in training can be told from a gain.", "adaptation.seeds=[0,1,2]"
        )


def _source(scores: list[Results]) -> Iterator[Step]:
    row = next((s for s in scores if s["model"] == "source"), None)
    if row is not None and Comparison.of(row).better is not True and known(row.get("bits_per_byte")) is not None:
        yield _step(
            "Choose a source, or text, where the source is better than the target: on this text it is not, so there is "
            "little to take over."
        )


def _text(verdict: Results, fused: list[Results], recipe: Results) -> Iterator[Step]:
    """Too little text to tell."""
    texts = max((s.get("texts") or 0 for s in fused), default=0)
    if not texts:
        return
    if texts < FEW_TEXTS:
        yield _step(
            f"Hold out more text: {count(texts)} are too few to tell a difference.", f"calibration.holdout={TEXTS}"
        )
    elif verdict.get("helped") is None:
        yield _step(
            f"Hold out more text: with {count(texts)} the interval covers 0.", f"calibration.holdout={4 * texts}"
        )


def _source_better(scores: list[Results]) -> bool:
    return any(s["model"] == "source" and Comparison.of(s).better for s in scores)
