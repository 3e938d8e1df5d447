"""One loaded model and what is measured on it, with the weights of each variant in turn.

Every measurement is a piece of the run folder and is not made again; the model is loaded only when one is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, score
from tmerge_tui.engine.methods.transport_merge.fusion import Fusion
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.weights.install import patched
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.generation import continue_prompts
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir, key


@dataclass(frozen=True)
class Variant:
    """One row of the table of scores: a model as it was loaded, or with a fusion at alpha in it."""

    model: str  # what the report calls it: "target" | "source" | "fused" | "shrink" | "permuted" | ...
    alpha: float | None = None
    fusion: Fusion | None = None

    @property
    def name(self) -> str:
        return self.model if self.alpha is None else f"{self.model} at alpha {self.alpha:g}"

    def on(self, model: Any, norm: str) -> AbstractContextManager[None]:
        """The model with this variant's weights."""
        if self.fusion is None or self.alpha is None:
            return nullcontext()
        return patched(model, self.fusion, self.alpha, norm, transported=self.model != "shrink")


class Bench:
    """One model and what is measured on it, from the run folder where it is there already."""

    def __init__(self, subject: LoadedModel, recipe: Recipe, run: RunDir, emit: Emit) -> None:
        self.subject, self.recipe, self.run, self.emit = subject, recipe, run, emit
        self._model: Any = None

    def scores(self, variant: Variant, samples: Sequence[Sample], progress: Progress) -> Scores:
        """Bits of each sample; advances `progress` by the samples. Raises what `score` raises."""
        limit = self.recipe.calibration.max_length
        asked = key([sample.plain for sample in samples]), limit

        def measure(model: Any) -> dict[str, Any]:
            batch = self.recipe.evaluation.batch_size
            warn = partial(self.warn, variant.name)
            advance = partial(progress.advance, note=variant.name)
            return asdict(score(model, self.subject.tokenizer, samples, batch, limit, warn, advance))

        kept = self.measured("scores", variant, asked, measure, lambda: progress.skip(len(samples)))
        return Scores(tuple(kept["bits"]), tuple(kept["bytes"]))

    def continuations(self, variant: Variant) -> list[str]:
        """Greedy, one for each of `evaluation.prompts`."""
        prompts, longest = self.recipe.evaluation.prompts, self.recipe.evaluation.max_new_tokens
        if not prompts:
            return []

        def write(model: Any) -> list[str]:
            return continue_prompts(model, self.subject.tokenizer, prompts, longest)

        return self.measured("continued", variant, (prompts, longest), write)

    def measured(
        self,
        what: str,
        variant: Variant,
        asked: Sequence[Any],  # all that the answer depends on besides the weights
        measure: Callable[[Any], Any],  # model -> plain JSON
        found: Callable[[], None] = lambda: None,
    ) -> Any:
        """What `measure` says of the variant, from the run folder when it has been asked before (`found` is called)."""
        path = self.run.piece(what, self._key(variant, *asked), ".json")
        if path.exists():
            found()
            return json.loads(path.read_text(encoding="utf-8"))
        if self._model is None:
            self._model = self.subject.load()
        with variant.on(self._model, self.recipe.fusion.norm):
            value = measure(self._model)
        self.run.save_json(path, value)
        return value

    def _key(self, variant: Variant, *asked: Any) -> str:
        weights = None
        if variant.fusion is not None:
            weights = [variant.model == "shrink", variant.fusion.key, variant.alpha, self.recipe.fusion.norm]
        return key("evaluate-1", self.subject.facts.fingerprint, str(self.subject.dtype), weights, *asked)

    def warn(self, where: str, message: str) -> None:
        self.emit(Warned("evaluate", f"{where}: {message}"))
