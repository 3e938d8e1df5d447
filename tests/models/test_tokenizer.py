"""A tokenizer is what its files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import edit_config, make_model
from tmerge_tui.errors import ModelError
from tmerge_tui.models.tokenizer import load_tokenizer


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return make_model(tmp_path / "single")


def test_tokenizer(single: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(single)
    assert capfd.readouterr() == ("", "")
    coded = tokenizer("the word was read", return_offsets_mapping=True)
    assert tokenizer.decode(coded["input_ids"]) == "the word was read"
    assert [end for _, end in coded["offset_mapping"]][-1] == len("the word was read")


@pytest.mark.parametrize("eos", [True, False])
def test_padding_token(single: Path, eos: bool) -> None:
    path = single / "tokenizer_config.json"
    data = {
        k: v
        for k, v in json.loads(path.read_text()).items()
        if k not in ("pad_token", *(() if eos else ("eos_token",)))
    }
    path.write_text(json.dumps(data))
    tokenizer = load_tokenizer(single)
    assert tokenizer.pad_token == "<|end|>"  # the end of text, or token 0
    assert tokenizer(["a", "a b c"], padding=True)["attention_mask"][0][-1] == 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_no_tokenizer(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path, family)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer") as caught:
        load_tokenizer(folder)
    assert str(folder) in caught.value.found


def test_damaged_tokenizer(single: Path) -> None:
    (single / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no tokenizer that can be loaded"):
        load_tokenizer(single)


def test_tokenizer_without_offsets(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    edit_config(folder, model_type="llama")
    with pytest.raises(ModelError, match=r"ByT5Tokenizer.*no offsets"):
        load_tokenizer(folder)
