"""Transport and Merge (arXiv 2602.05495): read activations, solve transport plans, carry weights through them.

extract_source -> measure_source -> extract_target -> transport -> fuse
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from tmerge_tui.engine.activations.extract import Activations, extract
from tmerge_tui.engine.activations.pooling import plan_rows
from tmerge_tui.engine.methods.attention import attention_of
from tmerge_tui.engine.methods.method import At, Merge, Needs, Shares, Stage
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports, transport
from tmerge_tui.engine.methods.transport_merge.fuse import check_k, fuse
from tmerge_tui.engine.methods.transport_merge.fusion import FusedUpdate, Fusion
from tmerge_tui.engine.methods.transport_merge.needs import needs
from tmerge_tui.engine.methods.transport_merge.parts import parts
from tmerge_tui.engine.methods.transport_merge.ray_solver import check as check_cluster
from tmerge_tui.engine.methods.transport_merge.ray_solver import on_ray
from tmerge_tui.engine.part import Part
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import NumericsError, ProblemsError, TmergeError
from tmerge_tui.events import Emit
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.forward import LoadedModel, release
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching, match
from tmerge_tui.recipe import PROJECTIONS, Recipe
from tmerge_tui.recipe.paths import is_folder
from tmerge_tui.run_folder import RunDir

PLACEBOS = ("shrink", "permuted")  # rows times (1 - alpha); plans with the source's channels in random order


class TransportMerge:
    name = "transport_merge"
    about = (
        "Channels of the two models are matched by entropic optimal transport on the correlation of their activations, "
        "layers by optimal transport on the cost of those matchings, and weights are carried through both plans into "
        "the strongest neurons of the target: "
        "[Transport and Merge, arXiv:2602.05495](https://arxiv.org/abs/2602.05495)."
    )
    controls = "evaluation.controls"
    validated = False

    def placebos(self, recipe: Recipe) -> tuple[str, ...]:
        return recipe.evaluation.controls

    def settings(self, recipe: Recipe) -> list[tuple[str, Any]]:
        transport, fusion = recipe.transport, recipe.fusion
        return [
            ("projections", ", ".join(recipe.fused_projections)),
            ("neurons fused per projection (k)", fusion.k),
            ("plan entries kept (r)", fusion.r),
            ("coupling", fusion.coupling),
            ("norm", fusion.norm),
            ("task vector: source minus", None if fusion.reference is None else _public(fusion.reference)),
            ("epsilon", transport.epsilon),
            ("eta", transport.eta),
            ("source layers per target layer", transport.top_layers),
            ("solver", transport.solver),
        ]

    def needs(self, recipe: Recipe, models: Pair[ModelFacts], rows: int, told: int) -> Needs:
        return needs(recipe, models, rows)

    def too_slow(self, recipe: Recipe, models: Pair[ModelFacts], seconds: float) -> str | None:
        return None

    def stages(self, recipe: Recipe) -> tuple[Stage, ...]:
        return (
            Stage("extract_source", "Read activations of the source", 0.30),
            Stage("measure_source", "Measure the source", 0.05),
            Stage("extract_target", "Read activations of the target", 0.12),
            Stage("transport", "Solve transport plans", 0.20),
            Stage("fuse", "Carry weights through the plans", 0.12),
        )

    def match(self, recipe: Recipe, models: Pair[Party]) -> Matching:
        return match(models.each(lambda party: party.facts.layout), recipe.transport.projections)

    def check(self, recipe: Recipe, target: Party, matching: Matching, cluster: bool) -> list[str]:
        problems = _unmatched(recipe, matching)
        problems += check_k(target.facts.layout, _kinds(recipe, matching), recipe.fusion.k)
        depth = target.facts.layers
        wrong = [layer for layer in recipe.fusion.layers or () if not 0 <= layer < depth]
        if wrong:
            problems.append(f"fusion.layers: found {wrong}, expected layers from 0 to {depth - 1} of the target")
        if cluster:
            try:
                check_cluster(recipe)
            except ProblemsError as error:
                problems += error.problems
            except TmergeError as error:
                problems.append(f"transport.ray_address: {error}")
        return problems

    def strengths(self, recipe: Recipe) -> tuple[float, ...]:
        return recipe.fusion.alphas

    def merge(self, prepared: Prepared, run: RunDir, emit: Emit, visit: Callable[[LoadedModel], None]) -> Merge:
        transports, rows = plans(prepared, run, emit, visit)
        target, recipe = prepared.target.checkpoint, prepared.recipe
        fusion, permuted = _fuse(transports, prepared, run, emit)
        norm, controls = recipe.fusion.norm, recipe.evaluation.controls
        placebos: dict[str, At] = {}
        if "shrink" in controls:
            placebos["shrink"] = _at(fusion, target, norm, transported=False)
        if permuted is not None:
            placebos["permuted"] = _at(permuted, target, norm)
        aligned = prepared.matching.kinds

        def own(shares: Shares | None) -> list[Part]:
            figures = fusion.sharing(shares).figures()
            return parts(transports, figures, _kinds(recipe, prepared.matching), aligned)

        return Merge(
            at=_at(fusion, target, norm),
            placebos=placebos,
            claims=PLACEBOS,
            kinds=tuple(dict.fromkeys(line["kind"] for line in fusion.figures())),
            parts=own,
            notes=(*fusion.notes, *_told(prepared)),
            rows=rows,
            alignment=transports,
        )


def _told(prepared: Prepared) -> list[str]:
    if prepared.reference is None:
        return []
    return [f"what is carried is the source minus {_public(prepared.reference.located.name)}, added to the target"]


def _public(name: str) -> str:
    """A model of the Hub by its id, a folder by its last name."""
    return PurePath(name).name if is_folder(name) else name


def plans(
    prepared: Prepared, run: RunDir, emit: Emit, visit: Callable[[LoadedModel], None] = lambda source: None
) -> tuple[Transports, int]:
    """(the plans of a run, rows of activations they are solved on): what is missing is computed."""
    recipe, kinds = prepared.recipe, prepared.matching.kinds
    models = extract_both(prepared, run, emit, visit)
    solver = on_ray(recipe, emit) if recipe.transport.executor == "ray" else None
    attention = prepared.models.each(attention_of) if "heads" in recipe.transport.structure else None
    found = transport(models, kinds, recipe.transport, run, emit, prepared.device, solver, attention)
    return found, models.target.rows


def extract_both(
    prepared: Prepared, run: RunDir, emit: Emit, visit: Callable[[LoadedModel], None]
) -> Pair[Activations]:
    """One model after the other, the source first.

    Methods that are compared find what one of them has read: then all projections are, whichever this one needs.
    """
    settings, corpus, kinds = prepared.recipe.calibration, prepared.corpus, prepared.matching.kinds
    if prepared.recipe.compare_methods:
        kinds = match(prepared.models.each(lambda party: party.facts.layout), PROJECTIONS).kinds
    rows = plan_rows(
        corpus.calibration,
        [prepared.source.tokenizer, prepared.target.tokenizer],
        settings.max_length,
        settings.pooling,
        settings.chat_template,
    )
    found: dict[str, Activations] = {}
    for party in (prepared.source, prepared.target):
        subject = prepared.model(party, emit)
        with _naming_bad_weights(party):
            found[party.role] = extract(subject, corpus.calibration, rows, kinds, settings, run, emit)
        if party.role == "source":
            visit(subject)
        del subject
        release()
    return Pair(target=found["target"], source=found["source"])


@contextmanager
def _naming_bad_weights(party: Party) -> Iterator[None]:
    """NaN in activations usually is NaN in a weight: finds the tensor, so that the error can name it."""
    try:
        yield
    except NumericsError:
        party.checkpoint.check_finite(party.checkpoint.names, lambda done: None)
        raise


def _fuse(transports: Transports, prepared: Prepared, run: RunDir, emit: Emit) -> tuple[Fusion, Fusion | None]:
    recipe = prepared.recipe
    kinds = _kinds(recipe, prepared.matching)
    parties = prepared.models
    layouts = parties.each(lambda party: party.facts.layout)
    checkpoints = parties.each(lambda party: party.checkpoint)
    passes = (False, True) if "permuted" in recipe.evaluation.controls else (False,)
    layers = len(set(recipe.fusion.layers or range(layouts.target.layers)))
    options = recipe.fusion, recipe.transport.top_layers, recipe.seed
    reference = None if prepared.reference is None else prepared.reference.checkpoint
    with Progress(emit, "fuse", "Carrying weights through the plans", layers * len(passes), "layers") as progress:
        fusions = [
            fuse(transports, checkpoints, layouts, kinds, *options, run, emit, permuted, progress, reference)
            for permuted in passes
        ]
    return fusions[0], fusions[1] if len(fusions) > 1 else None


def _at(fusion: Fusion, target: Checkpoint, norm: str, transported: bool = True) -> At:
    def at(alpha: float, shares: Shares | None) -> FusedUpdate:
        mixed = fusion if shares is None else fusion.sharing(shares)
        return FusedUpdate(mixed, target, alpha, norm, transported)

    return at


def _kinds(recipe: Recipe, matching: Matching) -> list[str]:
    """The projections to fuse, those of them that were aligned."""
    return [kind for kind in recipe.fused_projections if kind in matching.kinds]


def _unmatched(recipe: Recipe, matching: Matching) -> list[str]:
    """Projections that fusion names but that cannot be aligned; those merely aligned by default are only noted."""
    missing = [kind for kind in recipe.fusion.projections or () if kind not in matching.kinds]
    if not missing:
        return []
    notes = "; ".join(note for note in matching.notes if note.split(":")[0] in missing)
    return [f"fusion.projections: the two models do not both have {', '.join(missing)} ({notes}); take it out"]
