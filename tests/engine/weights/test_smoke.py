"""A sound merge is never lost to a try-out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.tiny import make_model
from tmerge_tui.engine.weights import smoke_test
from tmerge_tui.engine.weights.smoke_test import smoke
from tmerge_tui.errors import NumericsError
from tmerge_tui.events import Event, Generated, Warned
from tmerge_tui.models.generation import continue_prompts
from tmerge_tui.models.tokenizer import load_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_strings": ["<|im_end|>"]},
        {"temperature": 0.6, "top_p": 0.9, "do_sample": False},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
        {"return_dict_in_generate": True, "output_scores": True},
        {"min_new_tokens": 99, "forced_eos_token_id": 5, "max_length": 3},
        {"cache_implementation": "static", "guidance_scale": 1.5, "prompt_lookup_num_tokens": 3},
        {"begin_suppress_tokens": [1], "bad_words_ids": [[7]], "repetition_penalty": 1.3, "max_time": 1e-9},
    ],
)
def test_settings_meant_for_users_do_not_matter(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = make_model(tmp_path / "model")
    seen: list[Event] = []
    plain = smoke(folder, "Two rivers", CPU, seen.append).text
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    assert plain and smoke(folder, "Two rivers", CPU, seen.append).text == plain
    assert [type(event) for event in seen] == [Generated, Generated]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    before = model.generation_config
    assert continue_prompts(model, tokenizer, ["Two rivers"], 8) == [plain] and model.generation_config is before


def silent(folder: Path, **special: str) -> Path:
    """A model whose tokenizer makes nothing of blanks."""
    made = Tokenizer(models.WordLevel({"<s>": 0, "two": 1, "rivers": 2, "<unk>": 3}, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    make_model(folder)
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", ["", " " * 45, "\n\t"])
@pytest.mark.parametrize("special", [{}, {"bos_token": "<s>"}, {"eos_token": "<s>"}])
def test_a_prompt_without_tokens_is_no_end(tmp_path: Path, prompt: str, special: dict[str, str]) -> None:
    assert smoke(silent(tmp_path / "model", **special), prompt, CPU, lambda event: None).text is not None


@pytest.mark.parametrize(
    ("family", "config"),
    [("gpt2", {"n_inner": 40}), ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}), ("llama", {})],
)
def test_a_prompt_longer_than_the_model(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    folder = make_model(tmp_path / "model", family, kv_heads=4, max_position_embeddings=32, **config)
    assert smoke(folder, "seven lamps " * 60, CPU, lambda event: None).text is not None
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    assert len(continue_prompts(model, tokenizer, ["seven lamps " * 60, "a"], 20)) == 2


def test_memory_reaches_the_try_out(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", layers=4)
    seen: list[Event] = []
    assert smoke(folder, "Two", CPU, seen.append, memory=90_000).text is not None
    assert any("read from disk" in event.message for event in seen if isinstance(event, Warned))
    seen.clear()
    assert smoke(folder, "Two", CPU, seen.append, memory=1000).text is None
    assert "is written, but could not be tried" in seen[-1].message  # type: ignore[union-attr]


def test_what_only_fails_to_write_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise KeyError("of code that comes with a model")

    monkeypatch.setattr(smoke_test, "continue_prompts", fail)
    seen: list[Event] = []
    assert smoke(make_model(tmp_path / "model"), "Two rivers", CPU, seen.append).text is None
    (event,) = seen
    assert isinstance(event, Warned) and "does not go on: 'of code that comes with a model'" in event.message


def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "nan")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(NumericsError, match=r"^model\.norm\.weight of "):
        smoke(folder, "a", CPU, lambda event: None)
