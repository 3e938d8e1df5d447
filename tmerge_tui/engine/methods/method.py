"""What a merge method brings: its stages, its checks, and the merge as updates of the target beside its placebos.

A method is a folder with one object of this protocol, a line in `registry` and a section of the recipe. What it
costs, what it refuses, what it reads and how a model card describes it is said by the method and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tmerge_tui.engine.part import Part
from tmerge_tui.engine.prepared import Party, Prepared
from tmerge_tui.engine.weights.update import Update
from tmerge_tui.events import Emit
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir

Shares = Mapping[str, float]  # part of the target that can have a strength of its own -> its share of alpha
At = Callable[[float, Shares | None], Update]  # alpha, shares; None: everything at alpha


@dataclass(frozen=True)
class Stage:
    name: str
    label: str  # what a person reads
    share: float  # of the whole run, as the progress bar weighs it


@dataclass(frozen=True)
class Merge:
    """What a method has found, at any strength."""

    at: At
    placebos: Mapping[str, At]  # what the result has to beat, those that the recipe asks for
    claims: Collection[str]  # placebos that all have to be measured and beaten before a claim of transfer
    kinds: Sequence[str]  # the parts that can have a strength of their own
    parts: Callable[[Shares | None], list[Part]]  # its own sections of the report, of what has a share in the result
    notes: Sequence[str] = ()
    rows: int = 0  # of activations it has read, T
    alignment: Any = None  # plans that transport hints are carried through; None: the method has none

    def candidate(self, alpha: float, shares: Shares | None = None) -> Candidate:
        """The merge at one strength, beside its placebos."""
        placebos = {name: at(alpha, shares) for name, at in self.placebos.items()}
        return Candidate(alpha, self.at(alpha, shares), placebos, self, shares)


@dataclass(frozen=True)
class Candidate:
    alpha: float
    update: Update
    placebos: Mapping[str, Update]
    merge: Merge
    shares: Shares | None = None

    def rescaled(self, alpha: float) -> Update:
        """The same merge at another strength."""
        return self.merge.at(alpha, self.shares)


@dataclass(frozen=True)
class Needs:
    """What a method takes by itself, beside reading and measuring, which are any method's. Upper figures."""

    work: str  # what its own work is called in estimates
    kinds: Sequence[str]  # projections whose activations it reads; none: it reads no calibration text
    memory: int  # bytes, at the most at once
    plans: int  # bytes on disk
    moved: int  # bytes on disk: what is carried over
    flops: float
    touched: float  # bytes of main memory that solving goes through
    solves: float


class Method(Protocol):
    name: str  # `method:` of the recipe
    about: str  # how it merges, for the model card: a sentence or two of Markdown
    controls: str  # the option of the recipe that names its placebos
    validated: bool  # whether its own stages read the validation text

    def placebos(self, recipe: Recipe) -> tuple[str, ...]:
        """The placebos that the recipe asks for."""

    def settings(self, recipe: Recipe) -> list[tuple[str, Any]]:
        """The options that a reader of the model card compares, by name; plain values."""

    def needs(self, recipe: Recipe, models: Pair[ModelFacts], rows: int, told: int) -> Needs:
        """`rows` of activations are read; `told`: how often a text is told by the target with an update in it."""

    def too_slow(self, recipe: Recipe, models: Pair[ModelFacts], seconds: float) -> str | None:
        """The problem of own work that takes so long on this CPU; None: the user may wait for it."""

    def stages(self, recipe: Recipe) -> tuple[Stage, ...]:
        """What it will announce, in order; "measure_source" among them where it calls `merge`'s `visit`."""

    def match(self, recipe: Recipe, models: Pair[Party]) -> Matching:
        """What of the two models meets. Raises CheckError or ModelError when nothing does."""

    def check(self, recipe: Recipe, target: Party, matching: Matching, cluster: bool) -> list[str]:
        """What would stop it after hours of work. `cluster`: joins a cluster that the recipe names."""

    def strengths(self, recipe: Recipe) -> tuple[float, ...]:
        """The strengths to merge at; none where validation text is to choose."""

    def merge(self, prepared: Prepared, run: RunDir, emit: Emit, visit: Callable[[LoadedModel], None]) -> Merge:
        """Computes what is not in the run folder yet. `visit` is called with the source while it is in memory."""
