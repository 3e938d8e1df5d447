"""Transports with plans given by hand, so that what fusion makes of them is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tmerge_tui.engine.methods.transport_merge.fuse import fuse
from tmerge_tui.engine.methods.transport_merge.fusion import Fusion
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.layout import Layout
from tmerge_tui.models.pair import Pair as Both
from tmerge_tui.models.projections import find_projections
from tmerge_tui.recipe import ATTENTION, Recipe
from tmerge_tui.run_folder import RunDir


@dataclass(frozen=True)
class Recorded:
    """Activations [T, n] of every side, random unless given."""

    layout: Layout
    seed: int
    T: int = 24

    @property
    def key(self) -> str:
        return f"recorded-{self.seed}"

    @property
    def layers(self) -> int:
        return self.layout.layers

    def side(self, layer: int, side: str) -> Tensor:
        n = self.layout.width(layer, side)
        assert n is not None
        generator = torch.Generator().manual_seed(hash((self.seed, layer, sum(map(ord, side)))) % 2**31)
        scale = torch.rand(n, generator=generator) + 0.5
        return torch.randn(self.T, n, generator=generator) * scale


class HandMade:
    """Stands for engine.transport.Transports: Q from `plan(side, l, m, n, n')`, P the same for every kind."""

    key = "hand-made"

    def __init__(
        self, target: Layout, source: Layout, P: Tensor, plan: Callable[[str, int, int, int, int], Tensor] | None = None
    ) -> None:
        self.target, self.source = Recorded(target, 1), Recorded(source, 2)
        self.P, self.make = P, plan or random_plan

    def layer_plan(self, kind: str) -> Any:
        return SimpleNamespace(P=self.P)

    def order(self, side: str) -> str:
        return side

    def plan(self, side: str, l: int, m: int) -> Tensor:
        widths = self.target.layout.width(l, side), self.source.layout.width(m, side)
        return self.make(side, l, m, *widths)  # type: ignore[arg-type]


def random_plan(side: str, l: int, m: int, n: int, n_source: int) -> Tensor:
    """A positive matrix that sums to 1, the same for the same arguments."""
    generator = torch.Generator().manual_seed(1000 * l + 100 * m + sum(map(ord, side)))
    Q = torch.rand(n, n_source, generator=generator) ** 4
    return Q / Q.sum()


def identity_plan(side: str, l: int, m: int, n: int, n_source: int) -> Tensor:
    assert n == n_source
    return torch.eye(n) / n


def noisy_biases(folder: Path) -> None:
    """Random values instead of the zeros that biases start from."""
    generator = torch.Generator().manual_seed(5)
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        for name in sorted(tensors):
            if name.endswith("bias"):
                tensors[name] = torch.randn(tensors[name].shape, generator=generator).to(tensors[name].dtype)
        save_file(tensors, file, {"format": "pt"})


def layout_of(folder: Path) -> Layout:
    checkpoint = Checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return find_projections(model, config, checkpoint.names)


@dataclass(frozen=True)
class Pair:
    """Two models on disk, plans between them, and a run folder."""

    target: Checkpoint
    source: Checkpoint
    layouts: Both[Layout]
    transports: HandMade
    run: RunDir
    events: list[Any]

    @classmethod
    def make(cls, tmp_path: Path, target: Path, source: Path, P: Tensor, plan: Any = None) -> Pair:
        layouts = Both(target=layout_of(target), source=layout_of(source))
        transports = HandMade(layouts.target, layouts.source, P, plan)
        return cls(Checkpoint(target), Checkpoint(source), layouts, transports, RunDir.create(tmp_path / "run"), [])

    def fuse(self, kinds: Sequence[str] = ATTENTION, permuted: bool = False, seed: int = 0, **fusion: Any) -> Fusion:
        recipe = self.recipe(seed, **fusion)
        return fuse(
            self.transports,
            Both(target=self.target, source=self.source),
            self.layouts,
            kinds,
            recipe.fusion,
            recipe.transport.top_layers,
            recipe.seed,
            self.run,
            self.events.append,
            permuted,
        )  # type: ignore[arg-type]

    def recipe(self, seed: int = 0, evaluation: dict[str, Any] | None = None, **fusion: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "source": str(self.source.folder),
                "target": str(self.target.folder),
                "calibration": {"path": "unused.txt"},
                "fusion": {"k": 4, **fusion},
                "evaluation": evaluation or {},
                "output": str(self.run.path),
                "seed": seed,
            }
        )
