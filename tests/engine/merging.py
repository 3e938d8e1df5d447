"""Merging tiny models stage by stage, with each model's activations recorded once for all its pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from tests import by_hand
from tests.families import make_family
from tests.tiny import LINES
from tmerge_tui.engine.activations.extract import Activations, extract
from tmerge_tui.engine.activations.pooling import plan_rows
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.methods.transport_merge.feature_plans import transport
from tmerge_tui.engine.methods.transport_merge.fuse import fuse
from tmerge_tui.engine.methods.transport_merge.fusion import FusedUpdate, Fusion
from tmerge_tui.engine.weights.export import Folded, export
from tmerge_tui.events import Emit
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import auto_class
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.loading import load_model
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching, match
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe import PROJECTIONS, Recipe, make_recipe
from tmerge_tui.run_folder import RunDir

CPU = torch.device("cpu")
SAMPLES = [Sample(text=line[: 20 + i]) for i, line in enumerate(LINES[:5])]
K = 5


@dataclass(frozen=True)
class Opened:
    facts: ModelFacts
    checkpoint: Checkpoint
    activations: Activations


@dataclass(frozen=True)
class Merged:
    target: Path
    folder: Path
    matching: Matching
    fusion: Fusion
    update: FusedUpdate
    folded: Folded


@dataclass
class Bench:
    """Models are made in `folder` when first asked for."""

    folder: Path
    batch_size: int = 16
    opened: dict[tuple[str, str], Opened] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run = RunDir.create(self.folder / "run")
        data = {
            "calibration": {"path": "unused", "batch_size": self.batch_size},
            "output": "unused",
            "source": "unused",
            "target": "unused",
        }
        fusion = {"k": K, "r": None, "coupling": "barycentric"}
        self.recipe: Recipe = make_recipe({**data, "transport": {"epsilon": 0.5}, "fusion": fusion})

    def path_of(self, role: str, family: str) -> Path:
        return self.folder / f"{role}-{family}"

    def path(self, role: str, family: str) -> Path:
        path = self.path_of(role, family)
        return path if path.exists() else make_family(path, family, seed=sum(map(ord, role + family)))

    def open(self, role: str, family: str) -> Opened:
        if (role, family) not in self.opened:
            path = self.path(role, family)
            facts, tokenizer = read_facts(path, family), load_tokenizer(path)

            def load() -> Any:
                return load_model(facts, CPU, torch.float32, None, lambda event: None)

            subject = LoadedModel(role, facts, tokenizer, load, CPU, torch.float32)
            calibration = self.recipe.calibration
            rows = plan_rows(SAMPLES, [tokenizer], calibration.max_length, "sample", "auto")
            found = extract(subject, SAMPLES, rows, PROJECTIONS, calibration, self.run, lambda event: None)
            self.opened[role, family] = Opened(facts, Checkpoint(path), found)
        return self.opened[role, family]

    def merge(
        self, target: str, source: str, alpha: float, out: Path, norm: str = "free", emit: Emit = lambda event: None
    ) -> Merged:
        ours, theirs = self.open("target", target), self.open("source", source)
        both = Pair(target=ours, source=theirs)
        layouts = both.each(lambda opened: opened.facts.layout)
        matching = match(layouts, PROJECTIONS)
        options = self.recipe
        activations = both.each(lambda opened: opened.activations)
        plans = transport(activations, matching.kinds, options.transport, self.run, emit)
        checkpoints = both.each(lambda opened: opened.checkpoint)
        fusion = fuse(
            plans, checkpoints, layouts, matching.kinds, options.fusion, options.transport.top_layers, options.seed,
            self.run, emit,
        )  # fmt: skip
        update = FusedUpdate(fusion, ours.checkpoint, alpha, norm)
        folded = export(update, alpha, out, self.run, emit)
        return Merged(self.path("target", target), out, matching, fusion, update, folded)


def check_changes(family: str, merged: Merged) -> None:
    """The merged file differs from the target's in the selected rows and columns of the fused projections alone."""
    before, after = tensors_of(merged.target), tensors_of(merged.folder)
    assert before.keys() == after.keys()
    chosen = {(f.layer, f.kind): f for f in merged.fusion}
    touched = set()
    for layer in range(2):
        old, new = by_hand.split(family, before, layer), by_hand.split(family, after, layer)
        for kind in old:
            fused = chosen.pop((layer, kind), None)
            (W, b), (W_new, b_new) = old[kind], new[kind]
            differs = W_new != W
            if fused is None:
                assert not differs.any()
                assert b is None or torch.equal(b, b_new)
                continue
            axis = 1 if fused.axis == "rows" else 0
            assert differs.any(axis).nonzero().flatten().tolist() == fused.index.tolist()
            if fused.bias is not None:
                assert (b != b_new).nonzero().flatten().tolist() == fused.index.tolist()
            else:
                assert b is None or torch.equal(b, b_new)
        touched |= {name for name in before if not torch.equal(before[name], after[name])}
    assert not chosen, "fused but not known by hand"
    assert touched == set(merged.folded.fused)
    assert merged.folded.copied == len(before) - len(touched)


def check_loads(folder: Path) -> None:
    """As any user would: no key is missing or left over, logits are finite."""
    auto = auto_class(AutoConfig.from_pretrained(folder))
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
