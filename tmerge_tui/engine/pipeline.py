"""The stages in order, on one page. The only file that knows the order.

    check -> (download) -> the method's own stages -> (strength) -> fold -> (hints -> adapt -> fold_trained)
    -> evaluate -> (benchmark) -> (measure_trained) -> (general) -> (attribution) -> (safety) -> report

With `select: validation` nothing is written before all candidates are there: (adapt) -> select -> fold -> evaluate.

Each stage reads its finished pieces from the run folder and computes the missing ones, so resuming is running again.
One model is in memory at a time, and none when nothing of it is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tmerge_tui.engine.evaluation import besides
from tmerge_tui.engine.evaluation.alpha_search import choose, search
from tmerge_tui.engine.evaluation.benchmarks import benchmark
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.evaluation.holdout import Measured, continued, evaluate, fused_variants, variants_of
from tmerge_tui.engine.evaluation.select import Selection, Unchanged, select
from tmerge_tui.engine.methods.method import Candidate, Merge
from tmerge_tui.engine.methods.registry import METHODS, strength_is_chosen
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports
from tmerge_tui.engine.methods.transport_merge.stage import plans
from tmerge_tui.engine.part import Part
from tmerge_tui.engine.preflight import download
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.engine.preflight.reference import reference_choice
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Log, Progress
from tmerge_tui.engine.report.collect import collect, versions
from tmerge_tui.engine.training.announced import training_stages
from tmerge_tui.engine.weights.export import Folded, export
from tmerge_tui.engine.weights.smoke_test import smoke
from tmerge_tui.engine.weights.update import Update
from tmerge_tui.errors import StorageError
from tmerge_tui.events import Artifact, Checked, Emit, RunFinished, RunStarted, StageFinished, Warned
from tmerge_tui.files import write_atomic
from tmerge_tui.models.checkpoint import copy_bytes
from tmerge_tui.models.forward import LoadedModel, release
from tmerge_tui.recipe import ModelChoice, Recipe, dump_recipe
from tmerge_tui.run_folder import RunDir

if TYPE_CHECKING:
    from tmerge_tui.engine.training.stage import Adapted

__all__ = ["check", "reopen", "run", "stages_of"]

# name, what a person reads, share of the whole run as the progress bar weighs it
CHECK = ("check", "Check models, text and room", 0.02)
FOLD = ("fold", "Write the merged model", 0.05)
EVALUATE = ("evaluate", "Measure result and placebos", 0.13)
REPORT = ("report", "Write the report", 0.01)
BENCHMARK = ("benchmark", "Run benchmarks", 0.2)  # only with evaluation.choices or evaluation.tasks
STRENGTH = ("strength", "Choose the strength on validation text", 0.2)  # only where the strength is searched
FOLD_TRAINED = ("fold_trained", "Write the adapted model", 0.05)
SELECT = ("select", "Choose on validation text", 0.15)  # only with select: validation
MEASURE_TRAINED = ("measure_trained", "Measure trained models", 0.13)

Announced = tuple[str, str, float]


@dataclass(frozen=True)
class Merged:
    """What a method has found for a recipe, not yet written or measured."""

    prepared: Prepared  # its recipe has lengths that fit, and what can be compared
    merge: Merge
    candidates: list[Candidate]  # at every strength of the recipe, or at the one that was searched
    strength: dict[str, Any] | None  # how it was searched


def run(recipe: Recipe, run: RunDir, emit: Emit, until: Literal["", "adapt", "trained"] = "") -> None:
    """Runs a recipe into its run folder, from RunStarted to RunFinished; `until` ends it before or after "adapt".

    Raises CheckError with every problem found before any work, and what the stages raise.
    """
    began = time.monotonic()
    log = Log(emit)
    stages = [{"name": name, "label": label, "weight": weight} for name, label, weight in stages_of(recipe)]
    resumed = any(run.state.iterdir())
    log(RunStarted(str(run.path), os.getpid(), recipe.device, versions(), stages, resumed))
    found = merged(recipe, run, log)
    prepared, candidates, strength = found.prepared, found.candidates, found.strength
    recipe = prepared.recipe
    selected = recipe.select == "validation"
    folded = [] if until or selected else _fold(candidates, prepared, run, log)
    adapted = _adapt(candidates[0], prepared, run, log, until)
    if until:
        return
    selection = None
    if selected:
        selection, result = _select(candidates, adapted, prepared, run, log)
        folded = [result]
    elif adapted is not None:
        folded.insert(0, adapted.fold(run.model, run, log))
        _try_out(run.model, prepared, log)
    judged = candidates[:1] if recipe.evaluation.controls_at == "chosen" else candidates
    measured, parts = _measure(judged, adapted, prepared, run, log)
    parts += _what_else(judged, adapted, selection, prepared, run, log)
    parts += [Part("strength", strength), *([] if selection is None else [Part("selection", selection.plain())])]
    verdict = _report(prepared, candidates[0], parts, folded, measured, log, run)
    result, page = run.path / verdict["output"], run.path / "report.html"
    log(RunFinished(verdict["headline"], time.monotonic() - began, str(result), str(page)))


def merged(recipe: Recipe, run: RunDir, log: Log) -> Merged:
    """check -> the method's own stages -> (strength). Raises CheckError with all problems, and what stages raise."""
    prepared = _check(recipe, run, log)
    merge = METHODS[recipe.method].merge(
        replace(prepared, told=_teller(prepared, run, log)),
        run,
        log,
        lambda source: _measure_source(source, prepared, run, log),
    )
    return Merged(prepared, merge, *_candidates(merge, prepared, run, log))


def reopen(recipe: Recipe, run: RunDir) -> Transports:
    """The plans of a run that has solved them: every piece is read from its folder, none is computed.

    Raises StorageError when there is nothing to read, CheckError when models or text have gone.
    """
    if not any(run.state.iterdir()):
        raise StorageError(f"{run.state} is empty", "the finished pieces of the run", "run the merge again")
    return plans(prepare(recipe, cluster=False), run, lambda event: None)[0]


def stages_of(recipe: Recipe) -> tuple[Announced, ...]:
    """What a run of the recipe announces, in order; the shares sum to 1."""
    own = [(stage.name, stage.label, stage.share) for stage in METHODS[recipe.method].stages(recipe)]
    trained, selected = recipe.adaptation is not None, recipe.select == "validation"
    stages = [
        CHECK,
        *([(download.STAGE, download.LABEL, download.SHARE)] if download.needs_stage(recipe) else []),
        *own,
        *([STRENGTH] if strength_is_chosen(recipe) else []),
        *([] if selected else [FOLD]),
        *training_stages(recipe.adaptation),
        *([FOLD_TRAINED] if trained and not selected else []),
        *([SELECT, FOLD] if selected else []),
        EVALUATE,
        *([BENCHMARK] if recipe.evaluation.benchmarks else []),
        *([MEASURE_TRAINED] if trained else []),
        *besides.stages(recipe.evaluation),
        REPORT,
    ]
    whole = sum(share for _, _, share in stages)
    return tuple((name, label, share / whole) for name, label, share in stages)


def _check(recipe: Recipe, run: RunDir, log: Log) -> Prepared:
    with Progress(log, "check", "Checking models, text and room", 1, "steps") as progress:
        # where plans are solved already, that stage comes at once or has nothing to do: no need to join a cluster first
        prepared = prepare(recipe, cluster=not any(run.state.glob("transport-*")))
        progress.advance()
    source, target = prepared.source.facts.summary(), prepared.target.facts.summary()
    log(Checked(source, target, list(prepared.matching.kinds), list(prepared.matching.notes)))
    for warning in prepared.warnings:
        log(Warned("check", warning))
    prepared = download.download_models(prepared, log)
    resolved = {
        **{role: _resolved(getattr(recipe, role), getattr(prepared, role)) for role in ("source", "target")},
        **_resolved_reference(prepared),
        "calibration": {
            "repo_id": recipe.calibration.repo_id,
            "commit": prepared.corpus.commit,
            "sha256": prepared.corpus.sha256,
            "holdout_sha256": prepared.corpus.holdout_sha256,
        },
        "general": besides.resolved(prepared),
        "device": str(prepared.device),
        "versions": versions(),
    }
    recipe = prepared.recipe.model_copy(update={"resolved": resolved})
    write_atomic(run.recipe, dump_recipe(recipe).encode())
    log(Artifact("recipe", str(run.recipe), run.recipe.stat().st_size))
    return replace(prepared, recipe=recipe)


def _resolved_reference(prepared: Prepared) -> dict[str, Any]:
    choice = reference_choice(prepared.recipe)
    if choice is None or prepared.reference is None:
        return {}
    return {"reference": _resolved(choice, prepared.reference)}


def _resolved(choice: ModelChoice, party: Party) -> dict[str, Any]:
    """What names a model exactly; `preflight.check` takes the commit when the same recipe is run again."""
    located = party.located
    known = {"model": choice.model, "commit": located.commit, "fingerprint": party.facts.fingerprint}
    return known if located.base is None else {**known, "base": located.base.name, "base_commit": located.base.commit}


def _evaluator(subject: LoadedModel, prepared: Prepared, run: RunDir, log: Emit) -> Evaluator:
    recipe = prepared.recipe
    return Evaluator(subject, recipe.evaluation, recipe.calibration.max_length, recipe.seed, run, log)


def of_target(prepared: Prepared, run: RunDir, log: Emit) -> Evaluator:
    """What is measured on the target, loaded when something of it is missing."""
    return _evaluator(prepared.model(prepared.target, log), prepared, run, log)


def of_source(prepared: Prepared, run: RunDir, log: Emit) -> Evaluator:
    return _evaluator(prepared.model(prepared.source, log), prepared, run, log)


def _measure_source(source: LoadedModel, prepared: Prepared, run: RunDir, log: Log) -> None:
    """The source's scores while it is loaded; those who ask for them later find them."""
    if not prepared.recipe.evaluation.source:
        log(StageFinished("measure_source", 0.0, "skipped"))
        return
    holdout, evaluator = prepared.corpus.holdout, _evaluator(source, prepared, run, log)
    more = besides.visits(evaluator, prepared)
    total = len(holdout) + sum(texts for texts, _ in more)
    with Progress(log, "measure_source", f"Measuring {source.facts.label}", total, "texts") as progress:
        evaluator.scores(Variant("source"), holdout, progress)
        for _, read in more:
            read(progress)


def _teller(prepared: Prepared, run: RunDir, log: Log) -> Callable[[Update], float]:
    """Validation text told by the target with an update; the model is loaded at the first question and then kept."""
    evaluator, held = of_target(prepared, run, log), prepared.corpus.validation

    def told(update: Update) -> float:
        with Progress(
            lambda event: None, "validation", "", len(held), "texts"
        ) as silent:  # part of the stage that asks
            return evaluator.scores(Variant("fused", None, update), held, silent).bits_per_byte

    return told


def _candidates(
    merge: Merge, prepared: Prepared, run: RunDir, log: Log
) -> tuple[list[Candidate], dict[str, Any] | None]:
    """The merge at every strength of the recipe, that which validation text chooses the first; how it was chosen."""
    strengths, validation = METHODS[prepared.recipe.method].strengths(prepared.recipe), prepared.corpus.validation
    candidates = [merge.candidate(alpha) for alpha in strengths]
    if strengths and not strength_is_chosen(prepared.recipe):
        return candidates, None
    target = of_target(prepared, run, log)
    strength = choose(target, candidates, validation, log) if strengths else search(target, merge, validation, log)
    del target
    release()
    if not strengths:
        return [strength.candidate(merge)], strength.plain()
    return sorted(candidates, key=lambda one: one.alpha != strength.chosen_alpha), strength.plain()


def _fold(candidates: list[Candidate], prepared: Prepared, run: RunDir, log: Log) -> list[Folded]:
    """One folder for each strength: `model/`, or `model-alpha-0.05/` and so on for a list; each loaded and tried.

    With adaptation `model/` is for the adapted model, and what was only fused always carries its alpha in its name.
    """
    alone = len(candidates) == 1 and prepared.recipe.adaptation is None
    total = sum(copy_bytes(one.update.target, one.update.names) for one in candidates)
    folded = []
    with Progress(log, "fold", "Writing the merged model", total, "bytes") as progress:
        for one in candidates:
            out = run.model if alone else run.path / f"model-alpha-{one.alpha:g}"
            folded.append(export(one.update, one.alpha, out, run, log, progress))
            _try_out(out, prepared, log)
    return folded


def _adapt(fused: Candidate, prepared: Prepared, run: RunDir, log: Log, until: str) -> Adapted | None:
    """Trains what the recipe asks for, if it does; `until` "adapt" stops before the training itself."""
    if prepared.recipe.adaptation is None:
        return None
    from tmerge_tui.engine.training.stage import Adapted, make_setup  # the Trainer takes seconds to import

    setup = make_setup(prepared, fused, run, log)
    if until == "adapt":
        return None
    adapted = Adapted.of(setup)
    return adapted if until else adapted.go_on(prepared, run, log)  # a launcher trains what it spreads, no more


def _select(
    candidates: list[Candidate], adapted: Adapted | None, prepared: Prepared, run: RunDir, log: Log
) -> tuple[Selection, Folded]:
    """What validation text chooses of all that was merged and trained, written to model/."""
    variants = [*fused_variants(candidates), *([] if adapted is None else adapted.candidates)]
    general_texts = () if prepared.general is None else prepared.general.validation
    selection = select(of_target(prepared, run, log), variants, prepared.corpus.validation, log, general_texts)
    release()
    target = prepared.target.checkpoint
    update = selection.variant.update or Unchanged(target)
    with Progress(log, "fold", "Writing the chosen model", copy_bytes(target, update.names), "bytes") as progress:
        folded = export(update, selection.variant.alpha or 0.0, run.model, run, log, progress)
        _try_out(run.model, prepared, log)
    return selection, folded


def _try_out(folder: Path, prepared: Prepared, log: Log) -> None:
    """Loads and tries a written model as the run's own models are loaded."""
    recipe = prepared.recipe
    trust = recipe.target.trust_remote_code
    smoke(folder, _prompt(prepared), prepared.device, log, trust, recipe.memory_bytes, recipe.dtype)
    release()


def _prompt(prepared: Prepared) -> str:
    """What a written model is tried with."""
    prompts = prepared.recipe.evaluation.prompts
    return (*prompts, *(sample.plain[:40] for sample in prepared.corpus.calibration))[0]


def _measure(
    candidates: list[Candidate], adapted: Adapted | None, prepared: Prepared, run: RunDir, log: Log
) -> tuple[Measured, list[Part]]:
    """Everything on the hold-out: the target, the source, results and placebos, benchmarks, trained models."""
    options, corpus = prepared.recipe.evaluation, prepared.corpus
    source = (lambda: of_source(prepared, run, log)) if options.source else None
    measured = evaluate(of_target(prepared, run, log), source, candidates, corpus.holdout, log)
    trained = [] if adapted is None else [adapted.variant]
    rows: list[dict[str, Any]] = []
    if options.benchmarks:
        asked = (lambda: of_source(prepared, run, log)) if options.benchmark_source else None
        rows = benchmark(of_target(prepared, run, log), asked, [*fused_variants(candidates), *trained], log)
        release()
    adaptation = None
    if adapted is not None:
        target = of_target(prepared, run, log)
        adaptation = adapted.measure(target, candidates[0], corpus, log)
        measured = replace(measured, samples=[*measured.samples, *continued(target, trained, log)])
    parts = [Part("benchmarks", rows), Part("adaptation", adaptation), Part("samples", measured.samples)]
    return measured, parts


def _what_else(
    candidates: list[Candidate],
    adapted: Adapted | None,
    selection: Selection | None,
    prepared: Prepared,
    run: RunDir,
    log: Log,
) -> list[Part]:
    """What else the merge has changed: of the same models as on the hold-out, of trainings the first seed."""
    trained = [] if adapted is None else [adapted.variant]
    written = [*fused_variants(candidates), *trained]
    if selection is not None:
        written = [selection.variant] if selection.variant.update is not None else []
    variants = [*variants_of(candidates), *([] if adapted is None else adapted.first_seed)]
    source = (lambda: of_source(prepared, run, log)) if prepared.recipe.evaluation.source else None
    return besides.measure(prepared, variants, written, trained, lambda: of_target(prepared, run, log), source, log)


def _report(
    prepared: Prepared,
    result: Candidate,
    parts: list[Part],
    folded: list[Folded],
    measured: Measured,
    log: Log,
    run: RunDir,
) -> dict[str, Any]:
    from tmerge_tui.engine.report.model_card import write_card
    from tmerge_tui.engine.report.render import write_report

    with Progress(log, "report", "Writing the report", 1 + len(folded), "files") as progress:
        parts = [*parts, *result.merge.parts(result.shares)]
        results = collect(prepared, result.merge, parts, folded, measured, log.timings, log.warnings)
        readme = prepared.target.checkpoint.folder / "README.md"
        notes: list[str] = []
        for one in folded:
            notes += write_card(results, run.path / one.folder, readme if readme.exists() else None)
            progress.advance()
        for note in dict.fromkeys(notes):  # the same for every alpha
            log(Warned("report", note))
        results["warnings"] = log.warnings
        write_report(results, run)
        progress.advance()
    for name in ("report.html", "report.md", "report.json"):
        log(Artifact("report", str(run.path / name), (run.path / name).stat().st_size))
    return results["verdict"]
