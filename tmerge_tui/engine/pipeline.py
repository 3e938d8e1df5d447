"""The stages in order, on one page. The only file that knows the order.

    check -> (download) -> extract_source -> measure_source -> extract_target -> transport -> fuse -> (strength) -> fold
    -> evaluate -> (benchmark) -> report

Each stage reads its finished pieces from the run folder and computes the missing ones, so resuming is running again.
One model is in memory at a time, and none when nothing of it is missing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tmerge_tui.engine.activations.extract import Activations, Subject, extract
from tmerge_tui.engine.activations.pooling import plan_rows
from tmerge_tui.engine.evaluation.alpha_search import Strength, search
from tmerge_tui.engine.evaluation.benchmarks import benchmark
from tmerge_tui.engine.evaluation.evaluator import Bench, Variant, release
from tmerge_tui.engine.evaluation.holdout import Evaluation, continued, evaluate, fused_variants, score_source
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports, transport
from tmerge_tui.engine.methods.transport_merge.fuse import fuse
from tmerge_tui.engine.methods.transport_merge.fusion import Fusion
from tmerge_tui.engine.methods.transport_merge.ray_solver import on_ray
from tmerge_tui.engine.preflight import download
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.report.collect import collect, versions
from tmerge_tui.engine.weights.export import Folded, fold, fold_bytes
from tmerge_tui.engine.weights.smoke_test import smoke
from tmerge_tui.errors import NumericsError, StorageError
from tmerge_tui.events import (
    Artifact,
    Checked,
    Emit,
    Event,
    Logged,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
)
from tmerge_tui.files import write_atomic
from tmerge_tui.models.loading import load_model, pick_dtype
from tmerge_tui.recipe import ModelChoice, Recipe, dump_recipe
from tmerge_tui.run_folder import RunDir

__all__ = ["STAGES", "check", "reopen", "run"]

STAGES = (  # name, what a person reads, share of the whole run as the progress bar weighs it
    ("check", "Check models, text and room", 0.02),
    ("extract_source", "Read activations of the source", 0.30),
    ("measure_source", "Measure the source", 0.05),
    ("extract_target", "Read activations of the target", 0.12),
    ("transport", "Solve transport plans", 0.20),
    ("fuse", "Carry weights through the plans", 0.12),
    ("fold", "Write the merged model", 0.05),
    ("evaluate", "Measure result and placebos", 0.13),
    ("report", "Write the report", 0.01),
)
BENCHMARK = ("benchmark", "Run benchmarks", 0.2)  # only with evaluation.choices or evaluation.tasks
STRENGTH = ("strength", "Choose the strength on validation text", 0.2)  # only with fusion.alpha: auto

HINTS = ("hints", "Carry the source's activations", 0.3)  # only with adaptation.hints
TRAINING = (("adapt", "Train", 2.0), ("fold_trained", "Write the adapted model", 0.05))  # only with adaptation
MEASURE_TRAINED = ("measure_trained", "Measure trained models", 0.13)


@dataclass
class Log:
    """Passes events on and remembers what the report repeats."""

    emit: Emit
    timings: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    _labels: dict[str, str] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._labels[event.stage] = event.label
        elif isinstance(event, StageFinished):
            label = self._labels.get(event.stage, event.stage)
            timing = {"stage": event.stage, "label": label, "seconds": event.seconds, "outcome": event.outcome}
            self.timings.append(timing)
        elif isinstance(event, Warned):
            self.warnings.append({"where": event.where, "message": event.message})
        self.emit(event)


def run(recipe: Recipe, run: RunDir, emit: Emit, until: Literal["", "adapt", "trained"] = "") -> None:
    """Runs a recipe into its run folder, from RunStarted to RunFinished; `until` ends it before or after "adapt".

    Raises CheckError with every problem found before any work, and what the stages raise.
    """
    began = time.monotonic()
    log = Log(emit)
    stages = [{"name": name, "label": label, "weight": weight} for name, label, weight in _stages(recipe)]
    resumed = any(run.state.iterdir())
    log(RunStarted(str(run.path), _pid(), recipe.device, versions(), stages, resumed))
    prepared = _check(recipe, run, log)
    recipe = prepared.recipe  # lengths that fit, and what can be compared
    source, target = _extract_both(prepared, run, log)
    transports = _align(target, source, prepared, run, log)
    fusion, permuted = _fuse(transports, prepared, run, log)
    strength = None
    if recipe.fusion.searched:
        strength, fusion, permuted, recipe = _choose_strength(fusion, permuted, prepared, run, log)
    folded = [] if until else _fold(fusion, prepared, recipe, run, log)
    adapted = None
    if recipe.adaptation is not None:
        from tmerge_tui.engine.training.stage import Adapted, make_school  # the Trainer takes seconds to import

        school = make_school(
            prepared, recipe, transports, fusion, lambda: _subject(prepared, prepared.source, log), run, log
        )
        adapted = None if until == "adapt" else Adapted.of(school)
    if until:
        return
    if adapted is not None:
        folded.insert(0, adapted.fold(run.model, run, log))
        smoke(run.model, _prompt(prepared), prepared.device, log, recipe.target.trust_remote_code)
        release()
    holdout = prepared.corpus.holdout
    measured_source = _subject(prepared, prepared.source, log) if recipe.evaluation.source else None
    evaluation = evaluate(
        _subject(prepared, prepared.target, log), measured_source, fusion, permuted, holdout, recipe, run, log
    )
    trained = [] if adapted is None else [adapted.variant]
    if recipe.evaluation.benchmarks:
        rows = _benchmark([*fused_variants(fusion, recipe), *trained], prepared, run, log)
        evaluation = replace(evaluation, benchmarks=rows)
    measured = None
    if adapted is not None:
        subject = _subject(prepared, prepared.target, log)
        measured = adapted.measure(subject, prepared.corpus, recipe, run, log)
        more = continued(Bench(subject, recipe, run, log), trained, log)
        evaluation = replace(evaluation, samples=[*evaluation.samples, *more])
    verdict = _report(prepared, target.rows, transports, fusion, strength, folded, evaluation, measured, log, run)
    named = next((one for one in folded if one.alpha == verdict["alpha"]), folded[0])
    report = run.path / "report.html"
    log(RunFinished(verdict["headline"], time.monotonic() - began, named.folder, str(report)))


def reopen(recipe: Recipe, run: RunDir) -> Transports:
    """The plans of a run that has solved them: every piece is read from its folder, none is computed.

    Raises StorageError when there is nothing to read, CheckError when models or text have gone.
    """
    if not any(run.state.iterdir()):
        raise StorageError(f"{run.state} is empty", "the finished pieces of the run", "run the merge again")
    log = Log(lambda event: None)
    prepared = prepare(recipe, cluster=False)
    source, target = _extract_both(prepared, run, log)
    return _align(target, source, prepared, run, log)


def _stages(recipe: Recipe) -> tuple[tuple[str, str, float], ...]:
    """STAGES and, each behind the stage it follows, those that only some recipes need; the shares sum to 1."""
    more: dict[str, list[tuple[str, str, float]]] = {}
    if download.needs_stage(recipe):
        more["check"] = [(download.STAGE, download.LABEL, download.SHARE)]
    if recipe.fusion.searched:
        more["fuse"] = [STRENGTH]
    if recipe.evaluation.benchmarks:
        more["evaluate"] = [BENCHMARK]
    if recipe.adaptation is not None:
        more["fold"] = [*([HINTS] if recipe.adaptation.hints else []), *TRAINING]
        more["evaluate"] = [*more.get("evaluate", []), MEASURE_TRAINED]
    stages = [stage for usual in STAGES for stage in (usual, *more.get(usual[0], []))]
    whole = sum(share for _, _, share in stages)
    return tuple((name, label, share / whole) for name, label, share in stages)


def _pid() -> int:
    import os

    return os.getpid()


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
        "calibration": {
            "repo_id": recipe.calibration.repo_id,
            "commit": prepared.corpus.commit,
            "sha256": prepared.corpus.sha256,
            "holdout_sha256": prepared.corpus.holdout_sha256,
        },
        "device": str(prepared.device),
        "versions": versions(),
    }
    recipe = prepared.recipe.model_copy(update={"resolved": resolved})
    write_atomic(run.recipe, dump_recipe(recipe).encode())
    log(Artifact("recipe", str(run.recipe), run.recipe.stat().st_size))
    return replace(prepared, recipe=recipe)


def _resolved(choice: ModelChoice, party: Party) -> dict[str, Any]:
    """What names a model exactly; `engine.check` takes the commit when the same recipe is run again."""
    located = party.located
    known = {"model": choice.model, "commit": located.commit, "fingerprint": party.facts.fingerprint}
    return known if located.base is None else {**known, "base": located.base.name, "base_commit": located.base.commit}


def _extract_both(prepared: Prepared, run: RunDir, log: Log) -> tuple[Activations, Activations]:
    """(source, target): one model after the other; the source is measured while it is loaded."""
    recipe, corpus = prepared.recipe, prepared.corpus
    settings = recipe.calibration
    rows = plan_rows(
        corpus.calibration,
        [prepared.source.tokenizer, prepared.target.tokenizer],
        settings.max_length,
        settings.pooling,
        settings.chat_template,
    )
    found = []
    for party in (prepared.source, prepared.target):
        subject = _subject(prepared, party, log)
        with _naming_bad_weights(party):
            found.append(extract(subject, corpus.calibration, rows, prepared.matching.kinds, settings, run, log))
        if party.role == "source" and recipe.evaluation.source:
            texts = len(corpus.holdout)
            with Progress(log, "measure_source", f"Measuring {party.facts.label}", texts, "texts") as progress:
                score_source(subject, corpus.holdout, recipe, run, log, progress)
        elif party.role == "source":
            log(StageFinished("measure_source", 0.0, "skipped"))
        del subject
        release()
    return found[0], found[1]


def _align(target: Activations, source: Activations, prepared: Prepared, run: RunDir, log: Log) -> Transports:
    kinds, recipe = prepared.matching.kinds, prepared.recipe
    solver = on_ray(recipe, log) if recipe.transport.executor == "ray" else None
    return transport(target, source, kinds, recipe.transport, run, log, prepared.device, solver)


def _subject(prepared: Prepared, party: Party, log: Log) -> Subject:
    """The model of one visit: loaded on first use, given back when the subject is dropped."""
    recipe, facts = prepared.recipe, party.facts
    dtype, reason = pick_dtype(recipe.dtype, prepared.device, facts, recipe.memory_bytes)

    @functools.cache
    def load() -> Any:
        log(Logged("info", f"loading {facts.label} on {prepared.device}, {reason}"))
        return load_model(facts, prepared.device, dtype, recipe.memory_bytes, log)

    return Subject(party.role, facts, party.tokenizer, load, prepared.device, dtype)


@contextmanager
def _naming_bad_weights(party: Party) -> Iterator[None]:
    """NaN in activations usually is NaN in a weight: finds the tensor, so that the error can name it."""
    try:
        yield
    except NumericsError:
        party.checkpoint.check_finite(party.checkpoint.names, lambda done: None)
        raise


def _fuse(transports: Transports, prepared: Prepared, run: RunDir, log: Log) -> tuple[Fusion, Fusion | None]:
    recipe = prepared.recipe
    kinds = [kind for kind in recipe.fused_projections if kind in prepared.matching.kinds]
    layouts = (prepared.target.facts.layout, prepared.source.facts.layout)
    passes = (False, True) if "permuted" in recipe.evaluation.controls else (False,)
    layers = len(set(recipe.fusion.layers or range(layouts[0].layers)))
    with Progress(log, "fuse", "Carrying weights through the plans", layers * len(passes), "layers") as progress:
        fusions = [
            fuse(
                transports, prepared.target.checkpoint, prepared.source.checkpoint, layouts, kinds, recipe, run, log,
                permuted, progress,
            )
            for permuted in passes
        ]  # fmt: skip
    return fusions[0], fusions[1] if len(fusions) > 1 else None


def _choose_strength(
    fusion: Fusion, permuted: Fusion | None, prepared: Prepared, run: RunDir, log: Log
) -> tuple[Strength, Fusion, Fusion | None, Recipe]:
    """What was chosen; fusion and placebo with it, and the recipe with its alpha in place of `auto`."""
    recipe = prepared.recipe
    target = _subject(prepared, prepared.target, log)
    strength = search(target, fusion, prepared.corpus.validation, recipe, run, log)
    del target
    release()
    chosen, alpha = fusion.at(strength.strengths)
    settled = recipe.model_copy(update={"fusion": recipe.fusion.model_copy(update={"alpha": (alpha,)})})
    return strength, chosen, permuted and permuted.at(strength.strengths)[0], settled


def _fold(fusion: Fusion, prepared: Prepared, recipe: Recipe, run: RunDir, log: Log) -> list[Folded]:
    """One folder for each alpha: `model/`, or `model-alpha-0.05/` and so on for a list; each loaded and tried.

    With adaptation `model/` is for the adapted model, and what was only fused always carries its alpha in its name.
    """
    alphas, norm = recipe.fusion.alphas, recipe.fusion.norm
    alone = len(alphas) == 1 and recipe.adaptation is None
    total = fold_bytes(prepared.target.checkpoint, fusion) * len(alphas)
    folded = []
    with Progress(log, "fold", "Writing the merged model", total, "bytes") as progress:
        for alpha in alphas:
            out = run.model if alone else run.path / f"model-alpha-{alpha:g}"
            folded.append(fold(prepared.target.checkpoint, fusion, alpha, norm, out, run, log, progress))
            smoke(out, _prompt(prepared), prepared.device, log, recipe.target.trust_remote_code)
            release()
    return folded


def _prompt(prepared: Prepared) -> str:
    """What a written model is tried with."""
    prompts = prepared.recipe.evaluation.prompts
    return (*prompts, *(sample.plain[:40] for sample in prepared.corpus.calibration))[0]


def _benchmark(variants: list[Variant], prepared: Prepared, run: RunDir, log: Log) -> list[dict[str, Any]]:
    recipe = prepared.recipe
    source = (lambda: _subject(prepared, prepared.source, log)) if recipe.evaluation.benchmark_source else None
    rows = benchmark(_subject(prepared, prepared.target, log), source, variants, recipe, run, log)
    release()
    return rows


def _report(
    prepared: Prepared,
    rows: int,
    transports: Transports,
    fusion: Fusion,
    strength: Strength | None,
    folded: list[Folded],
    evaluation: Evaluation,
    adaptation: dict[str, Any] | None,
    log: Log,
    run: RunDir,
) -> dict[str, Any]:
    from tmerge_tui.engine.report.model_card import write_card
    from tmerge_tui.engine.report.render import write_report

    with Progress(log, "report", "Writing the report", 1 + len(folded), "files") as progress:
        results = collect(
            prepared, rows, transports, fusion, strength, folded, evaluation, adaptation, log.timings, log.warnings
        )
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
