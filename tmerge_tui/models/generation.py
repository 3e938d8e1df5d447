"""Greedy continuations, for the smoke test and for a look at target and result side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def continue_prompts(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 40) -> list[str]:
    """What the model writes after each prompt, greedily, one prompt at a time (no padding to disturb it)."""
    texts = []
    for prompt in prompts:
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids = model.generate(
            **encoded, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=pad,
            temperature=None, top_p=None, top_k=None,
        )  # fmt: skip  # sampling settings of the model's own generation config would only draw warnings
        texts.append(tokenizer.decode(ids[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts
