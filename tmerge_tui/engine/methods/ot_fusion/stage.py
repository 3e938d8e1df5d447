"""OTFusion for Transformers of other shapes: layer by layer over all tensors, one map for each space.

extract_source -> measure_source -> extract_target -> match -> carry; with cost: weights only the last two.
After OTFusion (arXiv 1910.05653) and Transformer Fusion (arXiv 2310.05719); docs/methods.md says what is otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.engine.activations.extract import Activations
from tmerge_tui.engine.methods.attention import attention_of, text_config
from tmerge_tui.engine.methods.method import At, Merge, Needs, Shares, Stage
from tmerge_tui.engine.methods.ot_fusion import depth
from tmerge_tui.engine.methods.ot_fusion.carry import PARTS, Carrier, Maps
from tmerge_tui.engine.methods.ot_fusion.channel_map import ChannelMap
from tmerge_tui.engine.methods.ot_fusion.fusion import Carried, OtUpdate, save
from tmerge_tui.engine.methods.ot_fusion.ground import ActivationGround, Ground, WeightGround
from tmerge_tui.engine.methods.ot_fusion.maps import Matcher
from tmerge_tui.engine.methods.ot_fusion.needs import needs
from tmerge_tui.engine.methods.ot_fusion.parts import parts, spaces_of
from tmerge_tui.engine.methods.ot_fusion.tokens import shared_tokens
from tmerge_tui.engine.methods.transport_merge.stage import extract_both
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import ModelError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.families.norms import embedding_scale
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching, match
from tmerge_tui.recipe import PROJECTIONS, Recipe
from tmerge_tui.run_folder import RunDir, key

PLACEBOS = ("shrink", "permuted")  # matrices times (1 - alpha); source channels of every space in random order


class OtFusionMethod:
    name = "ot_fusion"
    about = (
        "The two models' residual streams, heads and neurons are matched by optimal transport, one map for each space, "
        "and every tensor of the target is mixed with the source's carried through the maps of its spaces, after "
        "OTFusion ([arXiv:1910.05653](https://arxiv.org/abs/1910.05653)) and Transformer Fusion "
        "([arXiv:2310.05719](https://arxiv.org/abs/2310.05719))."
    )
    controls = "evaluation.controls"
    validated = False

    def placebos(self, recipe: Recipe) -> tuple[str, ...]:
        return recipe.evaluation.controls

    def settings(self, recipe: Recipe) -> list[tuple[str, Any]]:
        options = recipe.ot_fusion
        return [
            (name, value)
            for name, value in options.model_dump(mode="json").items()
            if name != "epsilon" or options.solver == "sinkhorn"
        ]

    def needs(self, recipe: Recipe, models: Pair[ModelFacts], rows: int, told: int) -> Needs:
        return needs(recipe, models, rows)

    def too_slow(self, recipe: Recipe, models: Pair[ModelFacts], seconds: float) -> str | None:
        return None

    def stages(self, recipe: Recipe) -> tuple[Stage, ...]:
        reads = recipe.ot_fusion.cost == "activations"
        return (
            *([Stage("extract_source", "Read activations of the source", 0.30)] if reads else []),
            *([Stage("measure_source", "Measure the source", 0.05)] if reads else []),
            *([Stage("extract_target", "Read activations of the target", 0.12)] if reads else []),
            Stage("match", "Match layers and the residual stream", 0.10),
            Stage("carry", "Carry every tensor through the maps", 0.20),
        )

    def match(self, recipe: Recipe, models: Pair[Party]) -> Matching:
        return match(models.each(lambda party: party.facts.layout), PROJECTIONS)

    def check(self, recipe: Recipe, target: Party, matching: Matching, cluster: bool) -> list[str]:
        fusion, adaptation = recipe.fusion, recipe.adaptation
        refused = {
            "fusion.projections": fusion.projections is not None,
            "fusion.layers": fusion.layers is not None,
            "fusion.norm: keep": fusion.norm == "keep",
            "fusion.reference": fusion.reference is not None,
            "adaptation.hints": adaptation is not None and adaptation.hints is not None,
            # low-rank updates are written for projections alone: embeddings and norms of the merge would be lost
            "adaptation.method: lora": adaptation is not None
            and adaptation.method == "lora"
            and adaptation.start == "merged",
            "transport.executor: ray": recipe.transport.executor == "ray",
        }
        return [
            f"{option}: found with method: ot_fusion, which carries all tensors of all layers and has no plans of "
            "single sides; leave it out, or take method: transport_merge"
            for option, given in refused.items()
            if given
        ]

    def strengths(self, recipe: Recipe) -> tuple[float, ...]:
        return recipe.fusion.alphas

    def merge(self, prepared: Prepared, run: RunDir, emit: Emit, visit: Callable[[LoadedModel], None]) -> Merge:
        recipe = prepared.recipe
        models, rows = None, 0
        if recipe.ot_fusion.cost == "activations":
            models = extract_both(prepared, run, emit, visit)
            rows = models.target.rows
        work = _Work(prepared, run, emit, models, *_tokens(prepared, emit))
        fused, permuted = work.carried()
        target, controls = prepared.target.checkpoint, recipe.evaluation.controls
        placebos: dict[str, At] = {}
        if "shrink" in controls:
            placebos["shrink"] = lambda alpha, shares: OtUpdate(fused, target, alpha, shares, transported=False)
        if permuted is not None:
            placebos["permuted"] = lambda alpha, shares: OtUpdate(permuted, target, alpha, shares)
        left = sorted(set(fused.collected("left")))

        def at(alpha: float, shares: Shares | None) -> OtUpdate:
            return OtUpdate(fused, target, alpha, shares)

        return Merge(
            at=at,
            placebos=placebos,
            claims=PLACEBOS,
            kinds=tuple(part for part in PARTS if part in fused.parts.values()),
            parts=lambda shares: parts(fused, shares),
            notes=(*work.notes, *(f"{name}: left as it is, the source has no tensor in its place" for name in left)),
            rows=rows,
        )


def _tokens(prepared: Prepared, emit: Emit) -> tuple[Tensor, list[str]]:
    """(rows of both embeddings for the same tokens, what is to be said of them)"""
    models = prepared.models
    rows = models.each(lambda party: party.facts.rows)
    try:
        found = shared_tokens(models.each(lambda party: party.tokenizer), rows)
    except ModelError as error:
        emit(Warned("match", f"embeddings and head are left as they are: {error.found}"))
        return torch.empty(0, 2, dtype=torch.int64), []
    told = f"{len(found):,} of {rows.target:,} rows of the embeddings are of tokens that the source has; others stay"
    return found, [told]


@dataclass
class _Work:
    """The pieces of one run."""

    prepared: Prepared
    run: RunDir
    emit: Emit
    models: Pair[Activations] | None
    tokens: Tensor
    notes: list[str]

    def __post_init__(self) -> None:
        prepared, self.options = self.prepared, self.prepared.recipe.ot_fusion
        self.facts = prepared.models.each(lambda party: party.facts)
        self.checkpoints = prepared.models.each(lambda party: party.checkpoint)
        self.layouts = self.facts.each(lambda facts: facts.layout)
        # fp64, which mps has not
        self.device = torch.device("cpu") if prepared.device.type == "mps" else prepared.device
        self.unconverged: list[str] = []
        controls = prepared.recipe.evaluation.controls
        self.seed = prepared.recipe.seed if "permuted" in controls else None
        self.key = self._key()

    def _key(self) -> str:
        read = None if self.models is None else [self.models.target.key, self.models.source.key]
        prints = [checkpoint.fingerprint() for _, checkpoint in self.checkpoints.items()]
        planned = self.options.depth == "plan"
        layers = self.prepared.recipe.transport.that_affect("layers") if planned else None
        return key("ot-fusion-1", prints, read, self.tokens.tolist(), self.options.that_affect("plans"), layers)

    @property
    def ground(self) -> Ground:
        if self.models is not None:
            return ActivationGround.of(self.models, self.device)
        return WeightGround(self.checkpoints, self.layouts, self.tokens, self.device)

    def carried(self) -> tuple[Carried, Carried | None]:
        """What was carried, and its placebo where the recipe asks for it."""
        attention = Pair(target=attention_of(self.prepared.target), source=attention_of(self.prepared.source))
        matcher = Matcher(self.ground, self.layouts, attention, self.options, self.device, self.unconverged)
        P, R, cost = self._matched(matcher)
        layers: list[int | None] = [*range(self.layouts.target.layers), None]
        kinds = {"carried": None} if self.seed is None else {"carried": None, "carried_permuted": self.seed}
        paths = {kind: [self.run.piece(kind, key(self.key, at, seed)) for at in layers] for kind, seed in kinds.items()}
        with Progress(self.emit, "carry", "Carrying every tensor through the maps", len(layers), "layers") as progress:
            for place, at in enumerate(layers):
                if all(mine[place].exists() for mine in paths.values()):
                    progress.skip()
                    continue
                self._carry(at, matcher, P, R, cost, {kind: mine[place] for kind, mine in paths.items()})
                progress.advance(note="embeddings and head" if at is None else f"target layer {at}")
        if self.unconverged:
            told = f"{len(self.unconverged)} plans did not converge, first {self.unconverged[0]}"
            self.emit(Warned("carry", f"{told}; a larger ot_fusion.epsilon does"))
        fused = Carried(tuple(paths["carried"]))
        return fused, Carried(tuple(paths["carried_permuted"])) if self.seed is not None else None

    def _matched(self, matcher: Matcher) -> tuple[Tensor, ChannelMap, float | None]:
        """P [L, M], the residual map and its cost."""
        path = self.run.piece("residual_map", key(self.key))
        L, M = self.layouts.target.layers, self.layouts.source.layers
        planned = self.options.depth == "plan"
        with Progress(self.emit, "match", "Matching the residual stream", L * (1 + planned), "layers") as progress:
            if path.exists():
                progress.skip(progress.total)
                tensors, meta = self.run.load(path)
                return tensors["P"], ChannelMap(tensors["T"].to(self.device)), meta["cost"]
            P = self._planned(matcher, progress) if planned else depth.nearest(L, M)
            widths = self.facts.each(lambda facts: facts.hidden)
            R, cost = matcher.residual(widths, P, progress.advance)
            self.run.save(path, {"P": P, "T": R.T}, {"cost": cost})
        return P, R, cost

    def _planned(self, matcher: Matcher, progress: Progress) -> Tensor:
        assert isinstance(matcher.ground, ActivationGround)
        there = self.layouts.each(
            lambda layout: torch.tensor([{"up", "down"} <= set(layout.kinds(at)) for at in range(layout.layers)])
        )
        z: Pair[Callable[[int, str], Tensor]] = Pair(target=matcher.ground.z.target, source=matcher.ground.z.source)
        return depth.planned(z, there, self.prepared.recipe.transport, progress.advance)

    def _carry(
        self, at: int | None, matcher: Matcher, P: Tensor, R: ChannelMap, cost: float | None, paths: dict[str, Path]
    ) -> None:
        carrier = Carrier(self.facts, self.checkpoints, self.seed)
        meta: dict[str, Any] = {}
        if at is None:
            texts = self.prepared.models.each(_embedding_scale)
            moved = carrier.outside(R, self.tokens, texts.source / texts.target)
            meta = {"spaces": [spaces_of("residual", None, None, R, cost)], "layers": P.tolist()}
        else:
            found = [
                (m, weight, Maps(R, matcher.layer(at, m, R))) for m, weight in enumerate(P[at].tolist()) if weight > 0
            ]
            moved, figures = carrier.layer(at, found)
            meta = {"projections": figures, "spaces": []}
            for m, _, maps in found:
                if maps.layer.heads is not None:
                    heads = maps.layer.heads
                    meta["spaces"].append(spaces_of("heads.q", at, m, heads.o, heads.cost) | {"heads": heads.pairs})
                if maps.layer.neurons is not None:
                    meta["spaces"].append(spaces_of("mlp", at, m, maps.layer.neurons, maps.layer.cost))
        for kind, path in paths.items():
            save(self.run, path, moved, kind != "carried", left=carrier.left, **meta)


def _embedding_scale(party: Party) -> float:
    return embedding_scale(party.facts.model_type, text_config(party))
