"""Models without a run: bits per byte of one model on general text, or of two with their difference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from tmerge_tui.engine.data.general_text import read_general
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.preflight.check import open_party
from tmerge_tui.engine.preflight.download import brought
from tmerge_tui.engine.prepared import open_model
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit
from tmerge_tui.hub.locate import find
from tmerge_tui.models.forward import release
from tmerge_tui.models.loading import pick_device
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe
from tmerge_tui.recipe.evaluation import General
from tmerge_tui.run_folder import RunDir


def alone(recipe: Recipe, emit: Emit) -> dict[str, Any]:
    """`source` of the recipe, and `target` where it is another model, on `evaluation.general`; nothing else is read.

    {"name", "texts", "rows": [{"model": as it was named, "bits_per_byte"}], "difference": {"difference", "low", "high"}
    of the first to the second | None}. Nothing is kept. Raises ModelError, DataError, MemoryShortage.
    """
    options = recipe.evaluation.general or General()
    text = read_general(options, recipe.seed, ())
    device = pick_device(recipe.device)
    choices = [recipe.source] if recipe.source == recipe.target else [recipe.source, recipe.target]
    parties = [open_party("source", find(choice), choice.trust_remote_code) for choice in choices]
    whole = brought(Pair(source=parties[0], target=parties[-1]), emit)
    scores: Sequence[Any] = ()
    evaluator = None
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(folder)
        total = len(choices) * len(text.measured)
        with Progress(emit, "general", f"Measuring on {text.name}", total, "texts") as progress:
            for party in (whole.source, whole.target)[: len(choices)]:
                subject = open_model(recipe, party, device, emit)
                length = min(recipe.calibration.max_length, party.facts.positions or recipe.calibration.max_length)
                evaluator = Evaluator(subject, recipe.evaluation, length, recipe.seed, run, emit)
                scores = [*scores, evaluator.scores(Variant("source"), text.measured, progress)]
                del subject
                release()
    assert evaluator is not None
    rows = [
        {"model": choice.model, "bits_per_byte": each.bits_per_byte}
        for choice, each in zip(choices, scores, strict=True)
    ]
    between = evaluator.interval(scores[0], scores[1]) if len(scores) == 2 else None
    return {"name": text.name, "texts": len(text.measured), "rows": rows, "difference": between}
