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
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, between, score
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.weights.install import installed
from tmerge_tui.engine.weights.update import Update
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.generation import continue_prompts
from tmerge_tui.recipe.evaluation import Evaluation
from tmerge_tui.run_folder import RunDir, key


@dataclass(frozen=True)
class Variant:
    """One row of the table of scores: a model as it was loaded, or with an update in it."""

    model: str  # what the report calls it: "target" | "source" | "fused" | "shrink" | "permuted" | ...
    alpha: float | None = None
    update: Update | None = None

    @property
    def name(self) -> str:
        return self.model if self.alpha is None else f"{self.model} at alpha {self.alpha:g}"

    def on(self, model: Any) -> AbstractContextManager[None]:
        """The model with this variant's weights."""
        return nullcontext() if self.update is None else installed(model, self.update)


class Evaluator:
    """One model and what is measured on it, from the run folder where it is there already."""

    def __init__(self, subject: LoadedModel, options: Evaluation, max_length: int, seed: int, run: RunDir, emit: Emit):
        self.subject, self.options, self.max_length, self.seed = subject, options, max_length, seed
        self.run, self.emit = run, emit
        self._model: Any = None

    def scores(
        self, variant: Variant, samples: Sequence[Sample], progress: Progress, known: Scores | None = None
    ) -> Scores:
        """Bits of each sample; advances `progress` by those read. `known` are the first samples' scores, not read anew.

        Raises what `score` raises.
        """
        limit, known = self.max_length, known or Scores((), ())
        rest = samples[len(known.bits) :]
        asked = key([sample.plain for sample in samples]), limit

        def measure(model: Any) -> dict[str, Any]:
            batch = self.options.batch_size
            warn = partial(self.warn, variant.name)
            advance = partial(progress.advance, note=variant.name)
            return asdict(known + score(model, self.subject.tokenizer, rest, batch, limit, warn, advance))

        kept = self.measured("scores", variant, asked, measure, lambda: progress.skip(len(rest)))
        return Scores(tuple(kept["bits"]), tuple(kept["bytes"]))

    def continuations(self, variant: Variant) -> list[str]:
        """Greedy, one for each of `evaluation.prompts`."""
        prompts, longest = self.options.prompts, self.options.max_new_tokens
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
        with variant.on(self._model):
            value = measure(self._model)
        self.run.save_json(path, value)
        return value

    def _key(self, variant: Variant, *asked: Any) -> str:
        weights = None if variant.update is None else list(variant.update.key)
        return key("evaluate-1", self.subject.facts.fingerprint, str(self.subject.dtype), weights, *asked)

    def interval(self, a: Scores, b: Scores) -> dict[str, float]:
        """a - b in bits per byte with its paired 95 % interval, as report.json has it."""
        return between(a, b, self.options.resamples, self.seed)

    def warn(self, where: str, message: str) -> None:
        self.emit(Warned("evaluate", f"{where}: {message}"))
