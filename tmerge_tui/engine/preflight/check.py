"""Everything that can fail, tried before anything big is done: all problems in one list.

`prepare` opens both models (headers only), the tokenizers and the text, and says what can be matched;
`check` is the same with the problems returned instead of raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmerge_tui.engine.data.corpus import Corpus, Sample, read_corpus, read_samples
from tmerge_tui.engine.data.general_text import GeneralText, read_general
from tmerge_tui.engine.evaluation.benchmarks import problems as benchmark_problems
from tmerge_tui.engine.evaluation.safety import problems as safety_problems
from tmerge_tui.engine.methods.registry import METHODS, strength_is_chosen
from tmerge_tui.engine.preflight.adapter_fit import refuse_unfit
from tmerge_tui.engine.preflight.dequantise import described, expected, is_packed
from tmerge_tui.engine.preflight.estimate import estimate, together
from tmerge_tui.engine.preflight.lengths import fitted
from tmerge_tui.engine.preflight.lora_merge import already_merged, brings_tokenizer, require_peft
from tmerge_tui.engine.preflight.reading import read_text, reads_general
from tmerge_tui.engine.preflight.reference import reference_choice, unlike
from tmerge_tui.engine.preflight.remote_checkpoint import Outline, outline
from tmerge_tui.engine.preflight.room import in_memory, output_problems
from tmerge_tui.engine.preflight.scouted import pace_of
from tmerge_tui.engine.preflight.speed import timed
from tmerge_tui.engine.prepared import Estimate, Party, Prepared
from tmerge_tui.engine.training.distillation import same_tokenizer
from tmerge_tui.engine.training.hints import check_hints
from tmerge_tui.engine.training.teacher import TRIED, check_teacher
from tmerge_tui.engine.training.tune import method_of
from tmerge_tui.errors import CheckError, ModelError, ProblemsError, TmergeError
from tmerge_tui.extras import NEEDED_BY, missing, needed_by, present
from tmerge_tui.hub.locate import Located, find
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.loading import pick_device
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import Matching
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe import Calibration, ModelChoice, Recipe

QUICK = 1e14  # FLOP below which nobody need be asked how fast this machine is


def check(recipe: Recipe) -> list[str]:
    """Every problem of a recipe on this machine; empty when it can run."""
    return examine(recipe)[0]


def examine(recipe: Recipe) -> tuple[list[str], list[str]]:
    """(every problem, what is to be known beside), the latter empty as long as there are problems.

    Of methods that are compared, one that cannot run is no problem as long as another can.
    """
    problems: dict[str, tuple[str, ...]] = {}
    warnings: list[str] = []
    for one in compared(recipe):
        try:
            warnings += prepare(one).warnings
        except ProblemsError as error:
            problems[one.method] = error.problems
    if len(problems) == len(compared(recipe)):
        return list(dict.fromkeys(problem for each in problems.values() for problem in each)), []
    left_out = [f"{name} is left out: {problem}" for name, each in problems.items() for problem in each]
    return [], [*dict.fromkeys(warnings), *left_out]


def compared(recipe: Recipe) -> list[Recipe]:
    """The recipe once for each method that it compares; itself where it compares none."""
    return [recipe.model_copy(update={"method": name}) for name in recipe.compare_methods] or [recipe]


def prepare(recipe: Recipe, cluster: bool = True) -> Prepared:
    """Opens what the recipe names; `cluster`: joins its Ray cluster too. Raises CheckError with all problems found."""
    problems = _extras(recipe)
    method = METHODS[recipe.method]
    chosen = method.validated or (recipe.adaptation is not None and recipe.adaptation.validated)
    searched = strength_is_chosen(recipe) or recipe.select == "validation" or chosen
    source, target, corpus, device = _opened(recipe, problems, searched)
    if target is None or source is None:
        raise CheckError(problems)
    models = Pair(target=target, source=source)
    facts = models.each(lambda party: party.facts)
    reference = _reference(recipe, source, problems)
    matching = _tried(problems, "transport.projections", lambda: method.match(recipe, models))
    if matching is not None:
        problems += method.check(recipe, target, matching, cluster)
    problems += benchmark_problems(recipe.evaluation)
    training = _training_text(recipe, corpus, problems)
    problems += _hints(recipe, target, matching)
    general = _general_text(recipe, corpus, training, problems)
    problems += [] if device is None else _tuning(recipe, source, device)
    recipe, notes = fitted(recipe, facts)
    unfit, said = safety_problems(recipe.evaluation.safety, _answering(recipe, models))
    problems, notes = problems + unfit, notes + said
    others = () if general is None else (*general.measured, *general.validation)
    reading = None if corpus is None else read_text(recipe, source, target, corpus, training, others)
    if reading is not None:
        problems += reading.problems
        notes += reading.warnings
    if corpus is not None and reading is not None and not reading.problems:
        problems += _teaching(recipe, source, target, training or corpus.calibration)
    seen = None if reading is None else (reading.rows, reading.tokens)
    needs = estimate(recipe, facts, seen, len(corpus.calibration) if corpus else None)
    problems += output_problems(recipe, needs, (source, target, *([] if reference is None else [reference])))
    if device is not None:
        too_much, streamed = in_memory(recipe, needs, device)
        problems, notes = problems + too_much + _too_slow(recipe, needs, facts, device), notes + streamed
    if problems:
        raise CheckError(problems)
    assert corpus is not None and reading is not None and matching is not None and device is not None
    if not reading.comparable:
        recipe = without_source(recipe)
    elif not reading.answerable:
        asked = recipe.evaluation.model_copy(update={"benchmark_source": False})
        recipe = recipe.model_copy(update={"evaluation": asked})
    if general is not None:
        general, more = reads_general(general, source, target)
        notes += [*general.warnings, *more]
    located = [party.located.note for party in (source, target) if party.located.note]
    warnings = [*located, *corpus.warnings, *notes]
    if source.facts.licence != target.facts.licence:
        warnings.append(
            f"licences differ: target {target.facts.licence or 'unknown'}, source {source.facts.licence or 'unknown'}; "
            f"the result is bound by both"
        )

    return Prepared(
        recipe, source, target, corpus, matching, device, needs, tuple(warnings), general, reference=reference
    )


def _reference(recipe: Recipe, source: Party, problems: list[str]) -> Party | None:
    choice = reference_choice(recipe)
    if choice is None:
        return None
    found: Party | None = _tried(
        problems, "fusion.reference", lambda: open_party("reference", find(choice), choice.trust_remote_code)
    )
    if found is not None:
        problems += unlike(source.facts, found.facts)
    return found


def _too_slow(recipe: Recipe, needs: Estimate, models: Pair[ModelFacts], device: torch.device) -> list[str]:
    """Why nobody would wait for the method's own work on this CPU."""
    method, batch = METHODS[recipe.method], recipe.calibration.batch_size * recipe.calibration.max_length
    name = method.needs(recipe, models, 1, 1).work
    work = needs.work[name]
    if device.type != "cpu" or work < QUICK:
        return []
    alone = Estimate(0, 0, work, (), {name: work}, needs.touched, {"pairs": needs.steps["pairs"]})
    seconds = timed(alone, models.source, models.target, batch, device).seconds or 0.0
    problem = method.too_slow(recipe, models, seconds)
    return [] if problem is None else [f"{problem} ({work / 1e12:,.0f} TFLOP)"]


@dataclass(frozen=True)
class Opened:
    """Models and text of a recipe, for who merges nothing; `training` is what would be trained on."""

    recipe: Recipe  # with lengths that fit both models
    models: Pair[Party]
    corpus: Corpus  # with validation text
    training: tuple[Sample, ...]
    device: torch.device


def open_recipe(recipe: Recipe) -> Opened:
    """Opens models and text and asks nothing else of them. Raises CheckError with all problems found."""
    problems: list[str] = []
    source, target, corpus, device = _opened(recipe, problems, validation=True)
    training = _training_text(recipe, corpus, problems)
    if problems or source is None or target is None or corpus is None or device is None:
        raise CheckError(problems)
    models = Pair(target=target, source=source)
    recipe, _ = fitted(recipe, models.each(lambda party: party.facts))
    return Opened(recipe, models, corpus, training or corpus.calibration, device)


def _opened(
    recipe: Recipe, problems: list[str], validation: bool
) -> tuple[Party | None, Party | None, Corpus | None, torch.device | None]:
    """Source, target, text and device, each None with its problem told."""
    source, target = (_party(role, recipe, problems) for role in ("source", "target"))
    corpus = _tried(problems, "calibration", lambda: read_corpus(_pinned_text(recipe), recipe.seed, validation))
    return source, target, corpus, _tried(problems, "device", lambda: pick_device(recipe.device))


def without_source(recipe: Recipe) -> Recipe:
    """The recipe without measurements of the source, where they would say nothing."""
    measured = recipe.evaluation.model_copy(update={"source": False, "benchmark_source": False})
    return recipe.model_copy(update={"evaluation": measured})


def with_time(prepared: Prepared) -> Estimate:
    """The estimate with the time that it takes on this machine: as scouted, or what a second of measuring says.

    Of methods that are compared, those that can run, together.
    """
    recipe, facts = prepared.recipe, prepared.models.each(lambda party: party.facts)
    needs = [prepared.estimate]
    for one in compared(recipe) if recipe.compare_methods else ():
        if one.method != recipe.method:
            with suppress(ProblemsError):
                needs.append(prepare(one, cluster=False).estimate)
    batch = recipe.calibration.batch_size * recipe.calibration.max_length
    seen = pace_of(recipe, facts, prepared.device)
    return timed(together(needs), facts.source, facts.target, batch, prepared.device, seen)


def _tried(problems: list[str], where: str, action: Any) -> Any:
    try:
        return action()
    except ProblemsError as error:
        problems += error.problems
    except TmergeError as error:
        problems.append(f"{where}: {error}")
    return None


def _extras(recipe: Recipe) -> list[str]:
    """Options that need an optional package which is not installed."""
    found = []
    for option in NEEDED_BY:
        value: Any = recipe
        for part in option.split("."):
            value = getattr(value, part, None)  # None: the section is off
        extra = needed_by(option, value)
        if extra and not present(extra):
            found.append(str(missing(option if isinstance(value, tuple) else f"{option}: {value}", extra)))
    return found


def _party(role: str, recipe: Recipe, problems: list[str]) -> Party | None:
    choice = _pinned(role, recipe)
    return _tried(problems, role, lambda: open_party(role, find(choice), choice.trust_remote_code))


def _pinned(role: str, recipe: Recipe) -> ModelChoice:
    """The choice, at the commit that an earlier run of this recipe has written down for the same model."""
    choice: ModelChoice = getattr(recipe, role)
    known = (recipe.resolved or {}).get(role) or {}
    if choice.is_folder or not known.get("commit") or known.get("model") != choice.model:
        return choice
    return choice.model_copy(update={"revision": known["commit"]})


def _pinned_text(recipe: Recipe) -> Calibration:
    """As `_pinned`, of a data set on the Hub."""
    known = (recipe.resolved or {}).get("calibration") or {}
    if recipe.calibration.repo_id is None or known.get("repo_id") != recipe.calibration.repo_id:
        return recipe.calibration
    return recipe.calibration.model_copy(update={"revision": known.get("commit")})


def open_party(role: str, located: Located, trust_remote_code: bool) -> Party:
    """A model whose small files are here; its weights may still be on the Hub, and then only headers are read.

    An adapter that has not been merged yet has the facts of its base.
    """
    located = already_merged(located)
    if located.whole and is_packed(located):
        if role == "target":
            raise ModelError(
                f"{located.name} is quantised, and a target is written as it is read",
                "plain float32, float16 or bfloat16 weights",
                "name the model it was made from; a quantised copy of the result is made afterwards (llama.cpp: "
                "convert_hf_to_gguf.py)",
            )
        located = described(located)
    tokens, shape = located, located
    if located.base is not None and not located.whole:
        require_peft(located)
        shape = located.base
        tokens = located if brings_tokenizer(located.folder) else located.base
    weights: Outline | None = None
    if located.packed is not None and not located.unpacked:
        tensors = expected(located, trust_remote_code)
        weights = Outline(located.folder, sum(t.bytes for t in tensors.values()), tensors, located.folder.name)
    elif shape.pending is not None:
        weights = outline(shape.pending, trust_remote_code)
    facts = read_facts(shape.folder, located.name, trust_remote_code, weights)
    if located.base is not None and not located.whole:
        known = weights or Checkpoint(shape.folder)
        refuse_unfit(located, {name: known.info(name).shape for name in known.names})
    return Party(role, located, facts, load_tokenizer(tokens.folder, trust_remote_code))


def _answering(recipe: Recipe, models: Pair[Party]) -> list[tuple[str, Any, int | None]]:
    """(role, tokenizer, context in tokens) of the models that the safety screen asks."""
    asked = [models.target, *([models.source] if recipe.evaluation.source else [])]
    return [(party.role, party.tokenizer, party.facts.positions) for party in asked]


def _hints(recipe: Recipe, target: Party, matching: Matching | None) -> list[str]:
    options = recipe.adaptation
    if options is None or options.hints is None or matching is None:
        return []
    return check_hints(options.hints, matching.kinds, target.facts.layers)


def _tuning(recipe: Recipe, source: Party, device: torch.device) -> list[str]:
    """What `teacher.tune: auto` needs for what it will choose here."""
    options = recipe.adaptation
    if options is None or not options.tuned or options.teaching.tune != "auto" or present("lora"):
        return []
    if method_of("auto", source.facts, device, recipe.memory_bytes) == "full":
        return []
    chosen = f"adaptation.teacher.tune: auto, which takes low-rank updates for {source.facts.label} here"
    return [str(missing(chosen, "lora"))]


def _teaching(recipe: Recipe, source: Party, target: Party, texts: Sequence[Sample]) -> list[str]:
    """Why the source cannot tell the target what it says next."""
    options, mode = recipe.adaptation, recipe.calibration.chat_template
    problems: list[str] = []
    if options is None or not options.distilled:
        return problems
    tried = texts[:TRIED]
    if same_tokenizer(target.tokenizer, source.tokenizer, tried, mode) and set(options.controls) <= {"untuned"}:
        return problems  # token by token, whatever bytes those stand for
    sides = [(party.tokenizer, party.facts.vocab) for party in (source, target)]
    _tried(problems, "adaptation", lambda: check_teacher(tried, sides, mode))
    return problems


def _general_text(
    recipe: Recipe, corpus: Corpus | None, training: Sequence[Sample], problems: list[str]
) -> GeneralText | None:
    """The text of `evaluation.general`, without what is the user's own."""
    options = recipe.evaluation.general
    if options is None or corpus is None:
        return None
    own = (*corpus.calibration, *corpus.validation, *corpus.holdout, *training)
    pinned = (recipe.resolved or {}).get("general")
    return _tried(problems, "evaluation.general.texts", lambda: read_general(options, recipe.seed, own, pinned))


def _training_text(recipe: Recipe, corpus: Corpus | None, problems: list[str]) -> tuple[Sample, ...]:
    """The text of `adaptation.path`; none where the calibration text is trained on."""
    options = recipe.adaptation
    if options is None or options.path is None or corpus is None:
        return ()
    path, kept_out = Path(options.path), (*corpus.holdout, *corpus.validation)

    def read() -> tuple[Sample, ...]:
        return read_samples(path, options.column, options.samples, recipe.seed, kept_out)[0]

    return _tried(problems, "adaptation.path", read) or ()
