"""Benchmarks: the same questions to target and result, and to the source on request, with paired intervals.

Questions come from files of multiple choice (`evaluation.choices`, built in) and from tasks of lm-evaluation-harness
(`evaluation.tasks` and `evaluation.general.tasks`, the extra `eval`). Every answer is a piece of the run folder: more
tasks may be asked later without asking the others again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from tmerge_tui.engine.evaluation import lm_eval_harness
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.evaluation.multiple_choice import answer, read_choices
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import DataError, MemoryShortage, ModelError, NumericsError, TmergeError
from tmerge_tui.events import Emit, Logged, Warned
from tmerge_tui.models.forward import release
from tmerge_tui.recipe.evaluation import ChoiceSet, Evaluation

STAGE = "benchmark"
BUILT_IN = "accuracy by bytes"
# What costs a benchmark and not the report: its data, its questions to this model. Not a full disk.
UNANSWERED = (DataError, ModelError, NumericsError, MemoryShortage)


def problems(evaluation: Evaluation) -> list[str]:
    """What keeps the benchmarks from running, found before any work."""
    found = []
    for settings in evaluation.choices:
        try:
            read_choices(settings)
        except TmergeError as error:
            found.append(f"evaluation.choices: {error}")
    return found + lm_eval_harness.problems(evaluation)


def benchmark(
    target: Evaluator,
    source: Callable[[], Evaluator] | None,  # None: not asked
    variants: Sequence[Variant],  # results in the target; the target itself is asked first
    emit: Emit,
) -> list[dict[str, Any]]:
    """The rows of `benchmarks` in report.json (stage "benchmark"), by task and metric, the target's first.

    A row is {"task", "metric", "by", "model", "alpha", "value", "stderr", "low", "high", "questions", "limit",
    "higher_is_better", "difference", "difference_low", "difference_high"}; intervals are 95 % bootstrap intervals over
    questions, differences are to the target on the same questions; None where a metric does not allow them.
    A benchmark that fails for one model is left out for all, with a warning. Raises StorageError when answers cannot be
    kept.
    """
    asked = [Variant("target"), *variants]
    total = len(target.options.benchmarks) * (len(asked) + (source is not None))
    found: list[tuple[Variant, dict[tuple[str, str], dict[str, Any]]]] = []
    failed: set[str] = set()
    with Progress(emit, STAGE, "Running benchmarks", total, "tasks") as progress:
        if source is not None:
            found.append((Variant("source"), _ask(source(), Variant("source"), progress, failed)))
            release()
        found += [(variant, _ask(target, variant, progress, failed)) for variant in asked]
    found.sort(key=lambda pair: pair[0].model != "target")  # stable: the target first
    baseline = found[0][1]
    rows = [
        _row(variant, answers[name], baseline[name], target.options.resamples, target.seed)
        for name in baseline
        if all(name in answers for _, answers in found)
        for variant, answers in found
    ]
    for row in rows:
        told = f"{row['task']}, {row['metric']}: {row['model']} {row['value']:.4f}"
        emit(Logged("info", told if row["limit"] is None else f"{told} (partial: {row['limit']} questions at most)"))
    return rows


def _ask(
    evaluator: Evaluator, variant: Variant, progress: Progress, failed: set[str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, metric) -> what the variant achieves there; adds to `failed`, and asks nothing that is in it."""
    evaluation = evaluator.options
    asked: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        *((each.title, partial(_choices, each, evaluator, variant, progress)) for each in evaluation.choices),
        *((task, partial(_task, task, evaluator, variant, progress)) for task in evaluation.all_tasks),
    ]
    found = {}
    for name, answers in asked:
        if name in failed:
            progress.total -= 1
            continue
        try:
            found.update({(row["task"], row["metric"]): row for row in answers()})
        except UNANSWERED as error:
            failed.add(name)
            progress.total -= 1
            evaluator.emit(Warned(STAGE, f"{name} is not in the report: {error.found}; {error.hint or error.expected}"))
    return found


def _choices(settings: ChoiceSet, evaluator: Evaluator, variant: Variant, progress: Progress) -> list[dict[str, Any]]:
    questions, tokenizer = read_choices(settings), evaluator.subject.tokenizer

    def solve(model: Any) -> list[dict[str, Any]]:
        warn = partial(evaluator.warn, f"{settings.title}, {variant.name}")
        right = answer(model, tokenizer, questions, evaluator.options.batch_size, warn)
        progress.advance(note=f"{settings.title}, {variant.name}")
        return [_accuracy(settings.title, [float(one) for one in right])]

    named = ("choices-1", settings.title, [asdict(question) for question in questions])
    rows = evaluator.measured("benchmark", variant, named, solve, progress.skip)
    return [row | {"by": "tmerge", "limit": None} for row in rows]


def _task(task: str, evaluator: Evaluator, variant: Variant, progress: Progress) -> list[dict[str, Any]]:
    evaluation, tokenizer, seed = evaluator.options, evaluator.subject.tokenizer, evaluator.seed

    def solve(model: Any) -> list[dict[str, Any]]:
        rows = lm_eval_harness.run_task(model, tokenizer, task, evaluation, seed)
        progress.advance(note=f"{task}, {variant.name}")
        return rows

    named = (*lm_eval_harness.identity(task, evaluation), seed)
    rows = evaluator.measured("benchmark", variant, named, solve, progress.skip)
    by = {"by": f"lm-eval {lm_eval_harness.version()}", "limit": evaluation.limit}
    return [row | by for row in rows]


def _accuracy(task: str, right: list[float]) -> dict[str, Any]:
    """As `lm_eval_harness.run_task` gives it."""
    value = sum(right) / len(right)
    stderr = math.sqrt(value * (1 - value) / (len(right) - 1))
    return {
        "task": task, "metric": BUILT_IN, "value": value, "stderr": stderr, "questions": len(right),
        "documents": right, "higher_is_better": True,
    }  # fmt: skip


def _row(variant: Variant, mine: dict[str, Any], target: dict[str, Any], resamples: int, seed: int) -> dict[str, Any]:
    names = ("task", "metric", "by", "value", "stderr", "questions", "limit", "higher_is_better")
    row = {name: mine[name] for name in names} | {"model": variant.model, "alpha": variant.alpha}
    each, theirs = mine["documents"], target["documents"]
    row["low"], row["high"] = (None, None) if each is None else _interval(each, resamples, seed)
    row["difference"] = None if variant.model == "target" else mine["value"] - target["value"]
    paired = variant.model != "target" and each is not None and theirs is not None
    ends = _interval([a - b for a, b in zip(each, theirs, strict=True)], resamples, seed) if paired else (None, None)
    return row | {"difference_low": ends[0], "difference_high": ends[1]}


def _interval(values: Sequence[float], resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    table = np.asarray(values, dtype=np.float64)
    step = max(1, 2**22 // len(table))  # resamples at a time, so that memory does not grow with the questions
    means = [
        table[rng.integers(len(table), size=(min(step, resamples - start), len(table)))].mean(1)
        for start in range(0, resamples, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
