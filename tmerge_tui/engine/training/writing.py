"""A model writes: continuations of many prompts at a temperature, by transformers' continuous batching.

Where that cannot run a model (not every architecture has a paged cache), texts are generated in padded batches, and
the reason is said. What was written is a piece of the run folder, CHUNK prompts in each: a run that is stopped writes
on where it was, later runs write nothing. Threads decide which prompts share a batch, so the same seed may write other
words in another folder; what a folder has stays as it is.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import ModelError
from tmerge_tui.models.config import quiet
from tmerge_tui.models.forward import LoadedModel, release
from tmerge_tui.recipe.synthetic import Synthetic
from tmerge_tui.run_folder import RunDir, key

CHUNK = 64  # prompts in one piece, and in flight at once
PADDED = 16  # prompts in one padded batch
PAGE = 64  # tokens of one page of the cache where there is no GPU to ask for its size
CONTINUOUS, PLAIN = "continuous batching", "padded batches"


@dataclass(frozen=True)
class Prompt:
    """What a model is given, and what that reads as once decoded."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Written:
    """One continuation; `ended`: by the model itself, and not by its length."""

    text: str
    ended: bool
    tokens: int


def write(
    model: LoadedModel,
    content: Sequence[Any],  # what names its weights
    prompts: Sequence[Prompt],  # each once for every continuation
    options: Synthetic,
    seed: int,
    run: RunDir,
    progress: Progress,
    warn: Callable[[str], None],
    inside: Callable[[Any], contextlib.AbstractContextManager[None]],  # model -> context in which it has its weights
) -> tuple[list[Written], str]:
    """(continuations in order, how they were made). Raises ModelError, MemoryShortage."""
    named = key("written-1", *content, [prompt.ids for prompt in prompts], options.that_affect("written"), seed)
    found: list[Written] = []
    made: set[str] = set()
    loaded: Any = None
    with contextlib.ExitStack() as weights:
        for number, start in enumerate(range(0, len(prompts), CHUNK)):
            chunk = prompts[start : start + CHUNK]
            piece = run.piece("written", f"{named}-c{number:04d}", ".json")
            if piece.exists():
                progress.skip(len(chunk))
            else:
                if loaded is None:
                    loaded = model.load()
                    weights.enter_context(inside(loaded))
                texts, how = _chunk(loaded, model.tokenizer, chunk, options, seed * 100_003 + number, warn)
                run.save_json(piece, {"by": how, "texts": [vars(text) for text in texts]})
                progress.advance(len(chunk), f"{sum(len(text.text) for text in texts):,} characters")
            kept = json.loads(piece.read_text(encoding="utf-8"))
            found += [Written(**text) for text in kept["texts"]]
            made.add(kept["by"])
    loaded = None
    release()
    return found, " and ".join(sorted(made))


def _chunk(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], options: Synthetic, seed: int, warn: Callable[[str], None]
) -> tuple[list[Written], str]:
    config, ends = _settings(model, tokenizer, options)
    ids, how = [list(prompt.ids) for prompt in prompts], CONTINUOUS
    try:
        new = _continuous(model, ids, config, seed)
    except Exception as error:  # what an architecture lacks is found in as many ways as there are architectures
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warn(
            f"continuous batching does not run {type(model).__name__} here ({reason}): texts are written in padded "
            "batches"
        )
        new, how = _padded(model, ids, config, seed), PLAIN
    return [_decoded(tokenizer, prompt, made, ends) for prompt, made in zip(prompts, new, strict=True)], how


def _settings(model: Any, tokenizer: Any, options: Synthetic) -> tuple[Any, set[int]]:
    """(settings of our own, with the model's ids of begin, end and padding; ids that end a text)"""
    from transformers import GenerationConfig

    theirs = model.generation_config
    end = tokenizer.eos_token_id if theirs.eos_token_id is None else theirs.eos_token_id
    ends = {int(i) for i in (end if isinstance(end, (list, tuple)) else [end]) if i is not None}
    ends |= set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None), 0)
    config = GenerationConfig(
        do_sample=True, temperature=options.temperature, top_k=0, top_p=1.0, num_beams=1, use_cache=True,
        max_new_tokens=options.max_tokens, bos_token_id=theirs.bos_token_id, eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )  # fmt: skip
    return config, ends


@torch.no_grad()
def _continuous(model: Any, prompts: Sequence[Sequence[int]], config: Any, seed: int) -> list[list[int]]:
    """Raises ModelError when a prompt was not continued, and whatever the architecture makes it raise."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    sizes: dict[str, int] = {}
    if model.device.type != "cuda":  # on a GPU it takes what is free; on a CPU that would be nearly all memory
        pages = -(-(max(map(len, prompts)) + config.max_new_tokens) // PAGE) + 1
        sizes = {"page_size": PAGE, "num_blocks": pages * len(prompts), "max_batch_tokens": 1024}
    batching = ContinuousBatchingConfig(seed=seed % 2**31, **sizes)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        found = model.generate_batch(
            inputs=[list(ids) for ids in prompts], generation_config=config, continuous_batching_config=batching
        )
    failed = [output.error for output in found.values() if output.error is not None]
    if failed or len(found) != len(prompts):
        raise ModelError(
            failed[0] if failed else f"{len(found)} of {len(prompts)} prompts were continued", "all of them"
        )
    return [list(output.generated_tokens) for output in found.values()]


@torch.no_grad()
def _padded(model: Any, prompts: Sequence[Sequence[int]], config: Any, seed: int) -> list[list[int]]:
    torch.manual_seed(seed)
    made: list[list[int]] = []
    own, model.generation_config = model.generation_config, config  # generate fills what is unset from the model's
    try:
        for start in range(0, len(prompts), PADDED):
            batch = prompts[start : start + PADDED]
            longest = max(map(len, batch))
            ids = torch.tensor([[config.pad_token_id] * (longest - len(one)) + list(one) for one in batch])
            mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in batch])
            written = model.generate(ids.to(model.device), attention_mask=mask.to(model.device))
            made += [row[longest:].tolist() for row in written]
    finally:
        model.generation_config = own
    return made


def _decoded(tokenizer: Any, prompt: Prompt, new: Sequence[int], ends: set[int]) -> Written:
    """Decoded behind its prompt, since some tokenizers lose the blank before a first word."""
    stop = next((i for i, token in enumerate(new) if token in ends), None)
    ids = list(new if stop is None else new[:stop])
    whole = tokenizer.decode([*prompt.ids, *ids], skip_special_tokens=True)
    alone = tokenizer.decode(list(prompt.ids), skip_special_tokens=True)
    text = whole[len(alone) :] if whole.startswith(alone) else tokenizer.decode(ids, skip_special_tokens=True)
    return Written(text, stop is not None, len(ids))
