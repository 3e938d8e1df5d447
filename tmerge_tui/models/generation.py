"""Greedy continuations: of the smoke test, of the report's look at both models, of the wizard's prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tmerge_tui.models.config import positions


@dataclass(frozen=True)
class Continuation:
    text: str  # what follows the prompt, without special tokens
    tokens: int  # how many were generated, special ones among them


def continue_prompt(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, stopped: Callable[[], bool] = lambda: False
) -> Continuation:
    """What the model writes after the prompt, greedily, until `stopped` says so (asked after every token)."""
    ids = prompt_ids(model, tokenizer, prompt, max_new_tokens)
    (new,) = _greedy(model, tokenizer, [ids], max_new_tokens, stopped)
    return Continuation(tokenizer.decode(new, skip_special_tokens=True), len(new))


def continue_ids(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """What the model writes after each row of tokens, greedily. The rows are of one length, so that none is padded."""
    made = _greedy(model, tokenizer, rows, max_new_tokens, lambda: False)
    return [tokenizer.decode(new, skip_special_tokens=True) for new in made]


@torch.no_grad()
def _greedy(
    model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, stopped: Callable[[], bool]
) -> list[list[int]]:
    """The tokens after each of `rows`, all of one length; with that of the end where one is written.

    The settings are our own and only the ids of begin, end and padding the model's: its generation_config.json is meant
    for its users, and may ask for what a mere continuation does not have (stop strings, other caches, an assistant).
    """
    from transformers import GenerationConfig

    ids = torch.tensor([list(row) for row in rows], device=model.device)
    window = positions(model.config)
    count = max_new_tokens if window is None else min(max_new_tokens, max(window - ids.shape[1], 1))
    theirs = model.generation_config
    end = tokenizer.eos_token_id if theirs.eos_token_id is None else theirs.eos_token_id
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None), 0)
    ours = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=count, use_cache=True,
        bos_token_id=theirs.bos_token_id, eos_token_id=end, pad_token_id=pad,
    )  # fmt: skip

    def done(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), stopped(), device=input_ids.device)

    own, model.generation_config = model.generation_config, ours  # generate fills what is unset from the model's
    try:
        made = model.generate(ids, attention_mask=torch.ones_like(ids), stopping_criteria=[done])
    finally:
        model.generation_config = own
    ends = set(end) if isinstance(end, (list, tuple)) else {end}
    return [_until(ends, new) for new in made[:, ids.shape[1] :].tolist()]


def _until(ends: set[int | None], new: list[int]) -> list[int]:
    """Without what a row of a batch was padded with behind its end."""
    last = next((at for at, token in enumerate(new) if token in ends), len(new))
    return new[: last + 1]


def continue_prompts(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 40) -> list[str]:
    """What the model writes after each prompt, one prompt at a time (no padding to disturb it)."""
    return [continue_prompt(model, tokenizer, prompt, max_new_tokens).text for prompt in prompts]


def prompt_ids(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 0) -> list[int]:
    """The prompt's tokens, never none: what a tokenizer makes nothing of (blanks, for some) begins with begin-of-text,
    end-of-text or the first token. Of a prompt that leaves no room to write in, the end is kept."""
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    if not ids:
        ids = [next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)]
    window = positions(model.config)
    return ids if window is None else ids[-max(window - max_new_tokens, window // 2, 1) :]
