"""Forgetting: bits per byte on general text, of target, source, results and placebos, with paired intervals.

What a merge gains on the user's text it may lose on any other. The same models as on the hold-out are measured on text
that neither alignment, training nor choice has seen; every score is a piece of the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tmerge_tui.engine.data.general_text import GeneralText
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.evaluation.holdout import score_row
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit
from tmerge_tui.models.forward import release

STAGE = ("general", "Measure on general text", 0.1)  # only with evaluation.general
METRIC = ("general_bits_per_byte", "bits/byte of general text")


def measure_general(
    target: Evaluator,
    source: Callable[[], Evaluator] | None,  # None: not measured
    variants: Sequence[Variant],  # results and placebos in the target
    text: GeneralText,
    emit: Emit,
) -> dict[str, Any]:
    """`general` of report.json (stage "general"): {"name", "texts", "rows", "tasks"}; a row is one of `scores`, its
    difference to the target on the same texts. Raises what `score` raises."""
    samples, tasks = text.measured, target.options.general.tasks if target.options.general else ()
    asked = source if text.comparable else None
    total = len(samples) * (len(variants) + 1 + (asked is not None))
    with Progress(emit, STAGE[0], f"Measuring on {text.name}", total, "texts") as progress:
        of_source = None
        if asked is not None:
            of_source = asked().scores(Variant("source"), samples, progress)
            release()
        baseline = target.scores(Variant("target"), samples, progress)
        rows = [score_row(Variant("target"), baseline, None, target, *METRIC)]
        if of_source is not None:
            rows.append(score_row(Variant("source"), of_source, baseline, target, *METRIC))
        for variant in variants:
            rows.append(score_row(variant, target.scores(variant, samples, progress), baseline, target, *METRIC))
    return {"name": text.name, "texts": len(samples), "rows": rows, "tasks": list(tasks)}
