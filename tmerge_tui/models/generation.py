"""Greedy continuations: of the smoke test, of the report's look at both models, of the wizard's prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Continuation:
    text: str  # what follows the prompt, without special tokens
    tokens: int  # how many were generated, special ones among them


@torch.no_grad()
def continue_prompt(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, stopped: Callable[[], bool] = lambda: False
) -> Continuation:
    """What the model writes after the prompt, greedily, until `stopped` says so (asked after every token)."""
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def done(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), stopped(), device=input_ids.device)

    ids = model.generate(
        **encoded, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=pad,
        temperature=None, top_p=None, top_k=None, stopping_criteria=[done],
    )  # fmt: skip  # sampling settings of the model's own generation config would only draw warnings
    new = ids[0, encoded["input_ids"].shape[1] :]
    return Continuation(tokenizer.decode(new, skip_special_tokens=True), len(new))


def continue_prompts(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 40) -> list[str]:
    """What the model writes after each prompt, one prompt at a time (no padding to disturb it)."""
    return [continue_prompt(model, tokenizer, prompt, max_new_tokens).text for prompt in prompts]
