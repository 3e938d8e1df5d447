"""What else a merge has changed, beside the user's text: general text, where a gain comes from, what is declined.

Each is a stage and a part of the report where the recipe asks for it, of the same models as on the hold-out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tmerge_tui.engine.evaluation import attribution, general, safety
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.part import Part
from tmerge_tui.engine.prepared import Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, StageFinished, Warned
from tmerge_tui.recipe.evaluation import Evaluation

STAGES = {"general": general.STAGE, "attribution": attribution.STAGE, "safety": safety.STAGE}  # section -> its stage


def stages(options: Evaluation) -> list[tuple[str, str, float]]:
    """What `measure` announces, in order."""
    return [stage for section, stage in STAGES.items() if getattr(options, section) is not None]


def measure(
    prepared: Prepared,
    variants: Sequence[Variant],  # results and placebos in the target
    written: Sequence[Variant],  # those that may become model/
    trained: Sequence[Variant],  # what the recipe calls its result, where it trains
    target: Callable[[], Evaluator],
    source: Callable[[], Evaluator] | None,  # None: not measured
    emit: Emit,
) -> list[Part]:
    """The parts that the recipe asks for. Raises what their stages raise."""
    options, parts = prepared.recipe.evaluation, []
    known = {(one.model, one.alpha) for one in variants}
    variants = [*variants, *(one for one in written if (one.model, one.alpha) not in known)]
    if prepared.general is not None:
        found = general.measure_general(target(), source, variants, prepared.general, emit)
        parts.append(Part("general", found))
    if options.attribution is not None and source is None:
        emit(Warned(attribution.STAGE[0], "the source is not measured, so what came from it cannot be told"))
        emit(StageFinished(attribution.STAGE[0], 0.0, "skipped"))
    elif options.attribution is not None and source is not None:
        found = attribution.attribute(target(), source, variants, written, prepared.corpus.holdout, emit)
        parts.append(Part("attribution", found))
    if options.safety is not None:
        names = {(one.model, one.alpha) for one in (*written, *trained)}
        asked = [one for one in variants if one.alpha is not None or (one.model, one.alpha) in names]
        parts.append(Part("safety", safety.screen(target(), source, asked, options.safety, emit)))
    return parts


def visits(evaluator: Evaluator, prepared: Prepared) -> list[tuple[int, Callable[[Progress], object]]]:
    """(texts, what reads them) of all that is asked of the source by reading, for the one time that it is in memory."""
    holdout, text, who = prepared.corpus.holdout, prepared.general, Variant("source")
    found: list[tuple[int, Callable[[Progress], object]]] = []
    if text is not None and text.comparable:
        found.append((len(text.measured), lambda progress: evaluator.scores(who, text.measured, progress)))
    if evaluator.options.attribution is not None:
        found.append((len(holdout), lambda progress: attribution.token_bits(evaluator, who, holdout, progress)))
    return found


def resolved(prepared: Prepared) -> dict[str, Any] | None:
    """What names the general text exactly; `read_general` takes the commit when the same recipe is run again."""
    options, text = prepared.recipe.evaluation.general, prepared.general
    if options is None or text is None:
        return None
    return {"texts": options.texts, "commit": text.commit, "sha256": text.sha256}
