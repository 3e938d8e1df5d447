"""Greedy continuations, for the smoke test and for a look at target and result side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tmerge_tui.models.config import positions


@torch.no_grad()
def continue_prompts(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 40) -> list[str]:
    """What the model writes after each prompt, greedily, one prompt at a time (no padding to disturb it).

    The settings are our own and only the ids of begin, end and padding the model's: its generation_config.json is meant
    for its users, and may ask for what a mere continuation does not have (stop strings, other caches, an assistant).
    """
    from transformers import GenerationConfig

    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(model, tokenizer, prompt, max_new_tokens)], device=model.device)
        window = positions(model.config)
        count = max_new_tokens if window is None else min(max_new_tokens, max(window - ids.shape[1], 1))
        theirs = model.generation_config
        end = tokenizer.eos_token_id if theirs.eos_token_id is None else theirs.eos_token_id
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None), 0)
        ours = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=count, use_cache=True,
            bos_token_id=theirs.bos_token_id, eos_token_id=end, pad_token_id=pad,
        )  # fmt: skip
        own, model.generation_config = model.generation_config, ours  # generate fills what is unset from the model's
        try:
            made = model.generate(ids, attention_mask=torch.ones_like(ids))
        finally:
            model.generation_config = own
        texts.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def prompt_ids(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 0) -> list[int]:
    """The prompt's tokens, never none: what a tokenizer makes nothing of (blanks, for some) begins with begin-of-text,
    end-of-text or the first token. Of a prompt that leaves no room to write in, the end is kept."""
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    if not ids:
        ids = [next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)]
    window = positions(model.config)
    return ids if window is None else ids[-max(window - max_new_tokens, window // 2, 1) :]
