"""Greedy continuations. Reference: the argmax of the model's own logits, token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_model
from tmerge_tui.models.generation import continue_prompt, continue_prompts


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_likeliest_token_each_time(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path / "model", family, eos_token_id=None)  # so that it goes on to the end
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0  # not asked for
    prompt = tokenizer("Two rivers")["input_ids"]
    ids = list(prompt)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    made = continue_prompt(model, tokenizer, "Two rivers", 6)
    assert (made.text, made.tokens) == (expected, 6)
    assert continue_prompts(model, tokenizer, ["Two rivers", "Bread"], 6)[0] == expected


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", eos_token_id=None)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    asked: list[bool] = []

    def stopped() -> bool:
        asked.append(len(asked) == 2)
        return asked[-1]

    assert continue_prompt(model, tokenizer, "Two rivers", 50, stopped).tokens == 3
