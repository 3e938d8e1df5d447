"""What the helper process knows how to answer: facts, matching, previews, estimates, text, plans. Imports torch.

A model in `args` is {"name": Hub id or folder, "folder": where it lies on this disk, or None when it is on the Hub}. Of
one on the Hub only the small files and the headers of the weights are read.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import Corpus, Pool, Sample, read_corpus, read_pool, render, uses_template
from tmerge_tui.engine.data.text_files import columns_of
from tmerge_tui.engine.methods.registry import METHODS
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports
from tmerge_tui.engine.preflight.check import compared, examine, open_party
from tmerge_tui.engine.preflight.estimate import estimate, together, unpacked_bytes
from tmerge_tui.engine.preflight.lengths import fitted
from tmerge_tui.engine.preflight.reading import read_text
from tmerge_tui.engine.preflight.room import in_memory
from tmerge_tui.engine.preflight.speed import timed
from tmerge_tui.engine.prepared import Party
from tmerge_tui.errors import CheckError, DataError, ModelError, TmergeError
from tmerge_tui.extras import EXTRAS, how_to_get, present
from tmerge_tui.hub.locate import find
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.generation import continue_prompt
from tmerge_tui.models.loading import load_model, pick_device
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import match
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe import Calibration, ModelChoice, Recipe, load_recipe, make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import trust
from tmerge_tui.worker.helper import Request

PREVIEW_CHARACTERS = 1200
NEW_TOKENS = 80


def facts(request: Request) -> dict[str, Any]:
    """args: a model. Its facts card, read from headers."""
    party = _party(**request.args)
    return {**party.facts.summary(), "download": _download_bytes(party), "note": party.located.note}


def matching(request: Request) -> dict[str, Any]:
    """args: source, target (models), kinds. What can be fused, what is skipped and why."""
    source, target = (_party(**request.args[role]).facts for role in ("source", "target"))
    layouts = Pair(target=target.layout, source=source.layout)
    found = match(layouts, tuple(request.args["kinds"]))
    warnings = []
    if source.licence != target.licence:
        warnings.append(f"licences differ: target {target.licence or 'unknown'}, source {source.licence or 'unknown'}")
    if source.fingerprint == target.fingerprint:
        warnings.append("source and target are the same checkpoint")
    elif source.parameters < target.parameters:
        warnings.append("the source is the smaller of the two: usually the larger one teaches; swap them?")
    elif _strangers(source, target):
        warnings.append(
            "they share neither family nor vocabulary: between such strangers fusion alone has not beaten its "
            "placebos; train afterwards (Method)"
        )
    return {
        "kinds": list(found.kinds),
        "notes": list(found.notes),
        "warnings": warnings,
        "layers": [source.layers, target.layers],
        "hidden": [source.hidden, target.hidden],
        "shapes": {kind: [_shapes(source, kind), _shapes(target, kind)] for kind in found.kinds},
    }


def preview(request: Request) -> dict[str, Any]:
    """args: calibration, seed, count, models {role: model}. A few samples as each model will read them."""
    args = request.args
    calibration = Calibration.model_validate(args["calibration"])
    corpus = _corpus(calibration, int(args.get("seed", 0)))
    shown = corpus.calibration[: int(args.get("count", 4))]
    samples: list[dict[str, Any]] = [{"plain": sample.plain[:PREVIEW_CHARACTERS]} for sample in shown]
    lengths: dict[str, list[int]] = {}
    for role, model in args.get("models", {}).items():
        tokenizer = _party(**model).tokenizer
        lengths[role] = []
        for sample, entry in zip(shown, samples, strict=True):
            request.check()
            text, tokens = _as_read(sample, tokenizer, calibration.chat_template)
            lengths[role].append(tokens)
            entry[role] = {"text": text[:PREVIEW_CHARACTERS], "tokens": tokens, "cut": tokens > calibration.max_length}
    return {
        "column": corpus.column,
        "columns": columns_of(Path(calibration.path)) if calibration.path else [],
        "calibration": len(corpus.calibration),
        "holdout": len(corpus.holdout),
        "samples": samples,
        "warnings": list(corpus.warnings),
    }


def estimated(request: Request) -> dict[str, Any]:
    """args: recipe, source, target (models). What the run takes on this machine, as `Estimate.as_json` has it, with
    "download" and "unpack" in bytes, "device", what of the method does not fit the models or this machine: "problems",
    and "notes".
    """
    recipe = make_recipe(request.args["recipe"])
    source, target = (_party(**request.args[role]) for role in ("source", "target"))
    recipe, _ = fitted(recipe, Pair(target=target.facts, source=source.facts))
    try:
        corpus = _corpus(recipe.calibration, recipe.seed)
        seen = read_text(recipe, source, target, corpus, ())
        read, texts = (seen.rows, seen.tokens) if not seen.problems else None, len(corpus.calibration)
    except DataError:
        read, texts = None, None  # the Data step says why; the figures are those of the text asked for
    request.check()
    facts = Pair(target=target.facts, source=source.facts)
    needs = together([estimate(one, facts, read, texts) for one in compared(recipe)])
    device = pick_device(recipe.device)
    batch = recipe.calibration.batch_size * recipe.calibration.max_length
    needs = timed(needs, source.facts, target.facts, batch, device)
    too_much, streamed = in_memory(recipe, needs, device)
    return {
        **needs.as_json(),
        "download": _download_bytes(source, target),
        "unpack": unpacked_bytes(source, target),
        "device": str(device),
        "problems": _unfit(recipe, source, target) + too_much,
        "notes": streamed,
    }


def _unfit(recipe: Recipe, source: Party, target: Party) -> list[str]:
    """What of the method does not fit the two models: k, layers, projections. Of several, nothing while one does."""
    found = [_unfit_alone(one, source, target) for one in compared(recipe)]
    return found[0] if all(found) else []


def _unfit_alone(recipe: Recipe, source: Party, target: Party) -> list[str]:
    method = METHODS[recipe.method]
    try:
        return method.check(recipe, target, method.match(recipe, Pair(target=target, source=source)), False)
    except CheckError as error:
        return list(error.problems)
    except TmergeError as error:
        return [str(error)]


def checked(request: Request) -> dict[str, list[str]]:
    """args: recipe. "problems": every one that the run would meet, none when it can run; "warnings" beside."""
    recipe = make_recipe(request.args["recipe"])
    trust.refuse(recipe)
    problems, warnings = examine(recipe)
    return {"problems": problems, "warnings": warnings}


def fields(request: Request) -> list[str]:
    """args: path. The fields of a file that one may choose from."""
    return columns_of(Path(request.args["path"]))


def lacking(request: Request) -> dict[str, str]:
    """The extras that are not installed, with what a person does to have them."""
    return {name: how_to_get(name) for name in EXTRAS if not present(name)}


def generate(request: Request) -> dict[str, Any]:
    """args: run, model ("target" or "fused"), prompt, folder of the fused model inside the run. Greedy continuation."""
    run = Path(request.args["run"])
    recipe = load_recipe(run / "recipe.yaml")
    trust.refuse(recipe)
    if request.args["model"] == "target":
        from tmerge_tui.engine.preflight.lora_merge import whole_folder

        folder = whole_folder(recipe.target)
    else:
        folder = run / request.args.get("folder", "model")
    if not (folder / "config.json").is_file():
        raise ModelError(f"no model in {folder}", "the folder a finished run has made", "run the merge again")
    model, tokenizer = _runnable(str(folder), recipe.target.trust_remote_code, recipe.device, recipe.memory_bytes)
    start = time.monotonic()
    made = continue_prompt(model, tokenizer, request.args["prompt"], NEW_TOKENS, lambda: request.cancelled)
    request.check()
    return {**asdict(made), "seconds": time.monotonic() - start}


def plan(request: Request) -> dict[str, Any]:
    """args: run, l, m, side. One transport plan, pooled, rebuilt from the run's activations and duals."""
    args = request.args
    heat = _transports(args["run"]).heatmap(args["side"], int(args["l"]), int(args["m"]))
    return asdict(heat)


def _strangers(source: ModelFacts, target: ModelFacts) -> bool:
    return source.model_type != target.model_type and source.vocab != target.vocab


def _shapes(model: ModelFacts, kind: str) -> list[list[int]]:
    """[out, in] of one kind of projection, once each where layers differ."""
    return [list(shape) for shape in {(p.d_out, p.d_in): 0 for p in model.layout.projections if p.kind == kind}]


def _as_read(sample: Sample, tokenizer: Any, mode: str) -> tuple[str, int]:
    """The text a model reads and how many tokens that is."""
    text = render(sample, tokenizer, mode)
    special = not uses_template(sample, tokenizer, mode)
    return text, len(tokenizer(text, add_special_tokens=special).input_ids)


@functools.lru_cache(maxsize=8)
def _party(name: str, folder: str | None, trust_remote_code: bool = False) -> Party:
    """A model opened for reading about it: configuration, tokenizer and headers, no weights."""
    located = find(ModelChoice(model=folder or name, trust_remote_code=trust_remote_code))
    return open_party("", replace(located, name=name), trust_remote_code)


def _download_bytes(*parties: Party) -> int:
    """What a run would have to fetch, of models and of bases of adapters; what two of them share counts once."""
    pending = {(listing.folder, listing.file): listing for party in parties for listing in party.located.downloads}
    return sum(file.size for listing in pending.values() for file in listing.missing)


@functools.lru_cache(maxsize=2)
def _runnable(folder: str, trust_remote_code: bool, device: str, memory: int | None) -> tuple[Any, Any]:
    """The two models that are compared stay loaded between prompts: of a recipe's `memory` each has one half."""
    known = read_facts(Path(folder), folder, trust_remote_code)
    half = None if memory is None else memory // 2
    model = load_model(known, pick_device(device), torch.float32, half, lambda event: None)
    return model, load_tokenizer(Path(folder), trust_remote_code)


@functools.lru_cache(maxsize=1)
def _transports(run: str) -> Transports:
    """Of a finished run: every piece is there and only read."""
    folder = RunDir.open(run)
    recipe = load_recipe(folder.recipe)
    trust.refuse(recipe)
    return pipeline.reopen(recipe, folder)


def _corpus(calibration: Calibration, seed: int) -> Corpus:
    """A file is read once for all numbers that one tries on it; a data set of the Hub is streamed anew."""
    if calibration.path is None or Path(calibration.path).is_dir():
        return read_corpus(calibration, seed)
    file = Path(calibration.path)
    try:
        age = file.stat().st_mtime_ns
    except OSError:
        age = 0  # it is not there: reading says so
    return read_corpus(calibration, seed, pool=_pool(calibration.path, calibration.column, age))


@functools.lru_cache(maxsize=2)
def _pool(path: str, column: str | None, age: int) -> Pool:
    return read_pool(Calibration(path=path, column=column), 0)


ANSWERS = {
    "facts": facts,
    "match": matching,
    "preview": preview,
    "estimate": estimated,
    "check": checked,
    "fields": fields,
    "extras": lacking,
    "generate": generate,
    "plan": plan,
}
