"""LS-Merge: weights of both models as chunks in one autoencoder, mixed in its latent space (docs/methods.md).

manifest -> autoencoder -> encode. Written from the paper's description (openreview VSDV0SWwOC); what that leaves open
is an option of the section `ls_merge`. Only the validation text is read, by which the autoencoder is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tmerge_tui.engine.data.corpus import hash_samples
from tmerge_tui.engine.methods.ls_merge.encode import PERMUTED, RANDOM, Coder, Encoder
from tmerge_tui.engine.methods.ls_merge.manifest import Manifest, read_manifest
from tmerge_tui.engine.methods.ls_merge.merge import (
    CARRIED,
    NOISE,
    RECONSTRUCTED,
    TRUNCATED,
    Decoded,
    Latents,
    LatentUpdate,
)
from tmerge_tui.engine.methods.ls_merge.needs import needs, too_slow
from tmerge_tui.engine.methods.ls_merge.parts import parts
from tmerge_tui.engine.methods.ls_merge.sizes import chunk_of, shape_of
from tmerge_tui.engine.methods.ls_merge.train import STAGE, Plan, content_of, load, train
from tmerge_tui.engine.methods.ls_merge.vae import Vae
from tmerge_tui.engine.methods.ls_merge.windows import Windows
from tmerge_tui.engine.methods.method import At, Merge, Needs, Shares, Stage
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching, match
from tmerge_tui.recipe import LS_CONTROLS, Recipe
from tmerge_tui.run_folder import RunDir, key

PLACEBOS = (RECONSTRUCTED, RANDOM, PERMUTED, NOISE, TRUNCATED)
assert set(PLACEBOS) == set(LS_CONTROLS)
PLAN = 4096  # chunks of a matrix that an exact plan can match


class LatentSpaceMerge:
    name = "ls_merge"
    about = (
        "Chunks of both models' weights are encoded by one autoencoder that was trained on both, the source's latents "
        "are carried to the target's by a Gaussian map, mixed with them, and decoded into the target, after LS-Merge "
        "([openreview VSDV0SWwOC](https://openreview.net/forum?id=VSDV0SWwOC))."
    )
    controls = "ls_merge.controls"
    validated = True  # the autoencoder is chosen by it

    def placebos(self, recipe: Recipe) -> tuple[str, ...]:
        return recipe.ls_merge.controls

    def settings(self, recipe: Recipe) -> list[tuple[str, Any]]:
        options = recipe.ls_merge.model_dump(mode="json", exclude={"controls"})
        return [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in options.items()]

    def needs(self, recipe: Recipe, models: Pair[ModelFacts], rows: int, told: int) -> Needs:
        return needs(recipe, models, told)

    def too_slow(self, recipe: Recipe, models: Pair[ModelFacts], seconds: float) -> str | None:
        return too_slow(recipe, models, seconds)

    def stages(self, recipe: Recipe) -> tuple[Stage, ...]:
        return (
            Stage("manifest", "List the chunks of both models", 0.02),
            Stage(STAGE, "Train the autoencoder of weights", 1.00),
            Stage("encode", "Encode both models and map the source", 0.08),
        )

    def match(self, recipe: Recipe, models: Pair[Party]) -> Matching:
        return match(models.each(lambda party: party.facts.layout), recipe.ls_merge.projections)

    def check(self, recipe: Recipe, target: Party, matching: Matching, cluster: bool) -> list[str]:
        fusion, adaptation = recipe.fusion, recipe.adaptation
        refused = {
            "fusion.projections": (fusion.projections is not None, "ls_merge.projections names them"),
            "fusion.reference": (fusion.reference is not None, "whole weights are mixed and no difference of two"),
            "fusion.norm: keep": (fusion.norm == "keep", "ls_merge.row_norms does that"),
            "adaptation.hints": (
                adaptation is not None and adaptation.hints is not None,
                "it has no plans of activations",
            ),
            "transport.executor: ray": (recipe.transport.executor == "ray", "it has no plans to solve"),
        }
        problems = [
            f"{option}: found with method: ls_merge, where {why}; leave it out, or take method: transport_merge"
            for option, (given, why) in refused.items()
            if given
        ]
        depth = target.facts.layers
        wrong = [layer for layer in fusion.layers or () if not 0 <= layer < depth]
        if wrong:
            problems.append(f"fusion.layers: found {wrong}, expected layers from 0 to {depth - 1} of the target")
        c = chunk_of(recipe.ls_merge, target.facts.parameters)
        most = max((-(-p.d_out * p.d_in // c) for p in target.facts.layout.projections), default=0)
        if recipe.ls_merge.rows == "barycentric" and most > PLAN:
            problems.append(
                f"ls_merge.rows: barycentric matches the {most:,} chunks of a matrix by an exact plan, expected at "
                f"most {PLAN:,}; use rows: resample, or a larger chunk"
            )
        return problems

    def strengths(self, recipe: Recipe) -> tuple[float, ...]:
        return recipe.fusion.alphas

    def merge(self, prepared: Prepared, run: RunDir, emit: Emit, visit: Callable[[LoadedModel], None]) -> Merge:
        recipe, options = prepared.recipe, prepared.recipe.ls_merge
        kinds = prepared.matching.kinds
        manifests = _manifests(prepared, run, emit)
        windows = Windows(manifests, kinds, options.window, options.batch_size)
        plan = Plan.of(shape_of(options, prepared.target.facts.parameters, len(kinds)), options, windows.steps)
        prints = [one.checkpoint.fingerprint() for _, one in manifests.items()]
        device = prepared.device
        content = content_of(prints, list(kinds), plan, options, recipe.seed, device.type)

        def tell(vae: Vae, step: int) -> float:
            assert prepared.told is not None, "the pipeline says how validation text is told"
            coder = Coder(vae, kinds, options.window, device)
            return prepared.told(Decoded(manifests.target, coder, options.row_norms, content, step))

        read = hash_samples(prepared.corpus.validation), recipe.calibration.max_length
        path, course = train(
            windows, plan, options, recipe.seed, key(content, options.row_norms, read), device, run, emit, tell
        )

        @cache
        def trained() -> Coder:
            return Coder(load(path, plan.shape, run, device), kinds, options.window, device)

        latents, notes = _encoded(prepared, manifests, trained, path.stem, run, emit)
        target = partial(_at, latents, options.row_norms)
        return Merge(
            at=target(CARRIED),
            placebos={name: target(name) for name in PLACEBOS if name in options.controls},
            claims=PLACEBOS,
            kinds=tuple(kind for kind in kinds if any(row["kind"] == kind for row in latents.lines)),
            parts=lambda shares: parts(latents, plan, course, recipe.seed),
            notes=tuple(notes),
        )


def _at(latents: Latents, row_norms: bool, what: str) -> At:
    def at(alpha: float, shares: Shares | None) -> LatentUpdate:
        return LatentUpdate(latents, what, alpha, shares, row_norms)

    return at


def _manifests(prepared: Prepared, run: RunDir, emit: Emit) -> Pair[Manifest]:
    options, kinds = prepared.recipe.ls_merge, prepared.matching.kinds
    c = chunk_of(options, prepared.target.facts.parameters)
    parties = prepared.models
    count = sum(
        party.facts.layout.get(layer, kind) is not None
        for _, party in parties.items()
        for layer in range(party.facts.layers)
        for kind in kinds
    )
    with Progress(emit, "manifest", "Listing the chunks of both models", count, "matrices") as progress:

        def done(now: bool) -> None:
            progress.advance() if now else progress.skip()

        return parties.each(
            lambda party: read_manifest(party.checkpoint, party.facts.layout, list(kinds), c, options.squash, run, done)
        )


def _encoded(
    prepared: Prepared,
    manifests: Pair[Manifest],
    coder: Callable[[], Coder],
    content: str,
    run: RunDir,
    emit: Emit,
) -> tuple[Latents, list[str]]:
    """Pieces of every target layer that is to be merged, and what is to be said of them."""
    recipe = prepared.recipe
    layers = sorted(set(recipe.fusion.layers or range(manifests.target.layout.layers)))
    encoder = Encoder(coder, manifests, recipe.ls_merge, recipe.seed, content, run)
    pieces, alone = {}, []
    with Progress(emit, "encode", "Encoding both models", len(layers), "layers") as progress:
        for layer in layers:
            found = encoder.layer(layer)
            if found is None:
                alone.append(layer)
                progress.skip()
                continue
            pieces[layer], now = found
            progress.advance() if now else progress.skip()
    latents = Latents(pieces, coder, manifests.target, recipe.seed)
    notes = []
    if alone:
        notes.append(f"target layers {alone} have no layer of the source beside them and stay as they are")
    unmapped = sorted({row["layer"] for row in latents.lines if row["bures"] is None})
    if unmapped and recipe.ls_merge.bures:
        said = f"the Bures map is skipped in target layers {unmapped}: fewer chunks than numbers of a latent"
        emit(Warned("encode", f"{said}; a smaller ls_merge.chunk has more of the first and fewer of the second"))
        notes.append(said)
    return latents, notes
