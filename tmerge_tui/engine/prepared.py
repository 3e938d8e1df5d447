"""What the check leaves to the stages: both models opened but not loaded, the text, and what a run will need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch

from tmerge_tui.engine.data.corpus import Corpus
from tmerge_tui.engine.data.general_text import GeneralText
from tmerge_tui.events import Emit, Logged
from tmerge_tui.hub.locate import Located
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.loading import load_model, pick_dtype
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching
from tmerge_tui.recipe import Recipe


@dataclass(frozen=True)
class Estimate:
    """Stages run one after the other, so memory is that of the largest one. Notes say what each figure is made of."""

    memory_bytes: int  # main memory, or that of the GPU when the run uses one
    disk_bytes: int  # of the run folder
    flops: float
    notes: tuple[str, ...]
    work: Mapping[str, float] = field(default_factory=dict)  # what for -> its part of flops
    touched: float = 0.0  # bytes of main memory that solving plans goes through, which its time depends on
    steps: Mapping[str, float] = field(default_factory=dict)  # "batches", "pairs", "loads": each has a cost of its own
    memory: Mapping[str, int] = field(default_factory=dict)  # "weights", "transport", "training", "teacher": bytes
    bound: bool = False  # at most this much: the text is not there yet, or patience decides how long is trained
    seconds: float | None = None  # on this machine, once that has been measured
    scouted: bool = False  # from what both models were seen to take, and not from products of their shapes

    def as_json(self) -> dict[str, Any]:
        """What `tmerge plan --json` and the wizard's screens take."""
        return {
            "seconds": self.seconds,
            "bound": self.bound,
            "scouted": self.scouted,
            "memory": self.memory_bytes,
            "memory_parts": dict(self.memory),
            "disk": self.disk_bytes,
            "flops": self.flops,
            "work": dict(self.work),
        }


@dataclass(frozen=True)
class Party:
    """One of the two models, opened but not loaded; `located.pending` when its weights are still on the Hub.

    What is aligned, measured, trained, fused from and written is one folder: that of the facts, which is that of the
    merge for an adapter. Only an adapter that is yet to be merged has the facts of its base meanwhile.
    """

    role: str  # "source" | "target"
    located: Located
    facts: ModelFacts
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.located.whole and self.located.folder != self.facts.folder:
            raise ValueError(f"{self.located.name}: located at {self.located.folder}, facts of {self.facts.folder}")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights; on this disk, and merged, only after the download."""
        if not self.located.whole:
            raise ValueError(f"{self.located.name} has not been merged yet")
        return Checkpoint(self.facts.folder)


@dataclass(frozen=True)
class Prepared:
    recipe: Recipe
    source: Party
    target: Party
    corpus: Corpus
    matching: Matching
    device: torch.device
    estimate: Estimate
    warnings: tuple[str, ...]
    general: GeneralText | None = None  # of evaluation.general
    # update of the target -> bits per byte of the validation text; the pipeline sets it for methods that choose by it
    told: Callable[[Any], float] | None = None
    reference: Party | None = None  # what the source was tuned from, where the recipe names it

    @property
    def models(self) -> Pair[Party]:
        return Pair(target=self.target, source=self.source)

    def model(self, party: Party, emit: Emit) -> LoadedModel:
        """The model of one visit: loaded on first use, given back when it is dropped."""
        return open_model(self.recipe, party, self.device, emit)


def open_model(recipe: Recipe, party: Party, device: torch.device, emit: Emit) -> LoadedModel:
    """A model as a recipe has it run on `device`, to be loaded on first use."""
    facts = party.facts
    dtype, reason = pick_dtype(recipe.dtype, device, facts, recipe.memory_bytes)

    @cache
    def load() -> Any:
        emit(Logged("info", f"loading {facts.label} on {device}, {reason}"))
        return load_model(facts, device, dtype, recipe.memory_bytes, emit)

    return LoadedModel(party.role, facts, party.tokenizer, load, device, dtype)
