"""A tokenizer is what its files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import LINES, edit_config, make_model
from tmerge_tui.errors import ModelError
from tmerge_tui.models.tokenizer import load_tokenizer, tokenizer_files


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


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "llama"])
def test_special_tokens_that_no_file_names_are_none(tmp_path: Path, family: str) -> None:
    """transformers' class for a family adds the family's own, which this vocabulary does not have."""
    folder = make_model(tmp_path, family)
    set_config(folder, bos_token=..., eos_token=..., pad_token=..., unk_token=...)
    for file in ("special_tokens_map.json", "added_tokens.json"):
        (folder / file).unlink(missing_ok=True)
    tokenizer = load_tokenizer(folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert all(getattr(tokenizer, name) in (None, 0) for name in names)
    set_config(folder, pad_token="[PAD]")  # named, and added by whoever made the model
    assert load_tokenizer(folder).pad_token == "[PAD]"


# -- as tokenizer.json has it ------------------------------------------------------------------------------------------


def metaspace(vocab: int = 400) -> PreTrainedTokenizerFast:
    """A vocabulary with byte fallback whose spaces are in its pieces, as Llama's and Gemma's are."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(undo)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, show_progress=False))
    data = json.loads(made.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(data))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "gemma2", "mistral"])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", None])
def test_a_tokenizer_reads_as_its_file_does(tmp_path: Path, family: str, kind: str | None) -> None:
    """transformers builds some families' own normaliser and splitting around whatever vocabulary it finds."""
    folder = make_model(tmp_path, family, vocab=400)
    metaspace().save_pretrained(folder)
    set_config(folder, tokenizer_class=kind or ..., backend=...)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer = load_tokenizer(folder)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("river stone 你好 lamp", "  two  rivers\n", "ສະບາຍດີ 😀", "<s>a</s>"):
        assert tokenizer(text, add_special_tokens=False).input_ids == own.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer("a 你好 lamp").input_ids, skip_special_tokens=True).strip() == "a 你好 lamp"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2) and tokenizer.pad_token
    assert tokenizer.chat_template
    automatic = AutoTokenizer.from_pretrained(folder)("river stone 你好 lamp", add_special_tokens=False).input_ids
    same = automatic == own.encode("river stone 你好 lamp", add_special_tokens=False).ids
    assert same != ("tokenizer.json is used here" in tokenizer.tmerge_note)


def test_what_its_configuration_adds_is_no_difference(single: Path) -> None:
    tokens = {"320": {"content": " lamps", "special": False, "lstrip": False, "rstrip": False, "normalized": False,
                      "single_word": False}}  # fmt: skip
    set_config(single, added_tokens_decoder=tokens, add_prefix_space=True)
    tokenizer = load_tokenizer(single)
    assert tokenizer.tmerge_note == ""


@pytest.mark.parametrize("letters", ["ACDEFGHIKLMNPQRSTVWY", "ACGT", "กขคงจ", "01"])
def test_a_vocabulary_of_any_letters_is_one(tmp_path: Path, letters: str) -> None:
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<|end|>", *letters])}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)(letters).input_ids == list(range(1, len(letters) + 1))


@pytest.mark.parametrize("kind", [1, 2], ids=["unigram", "bpe"])
@pytest.mark.parametrize("config", ["LlamaTokenizer", None])
def test_a_sentencepiece_model_alone(tmp_path: Path, kind: int, config: str | None) -> None:
    import sentencepiece

    folder = make_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    text = tmp_path / "text.txt"
    text.write_text("\n".join(LINES))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=320, byte_fallback=True,
        model_type=("", "unigram", "bpe")[kind], minloglevel=2,
    )  # fmt: skip
    if config:
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": config, **names}))
    tokenizer = load_tokenizer(folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    same = tokenizer("two rivers 你", add_special_tokens=False).input_ids == reference.encode("two rivers 你")
    assert same or "otherwise than tokenizer.model" in tokenizer.tmerge_note  # without a class it is only guessed
    assert same or not config
    assert "tokenizer.model" in tokenizer_files(folder)
