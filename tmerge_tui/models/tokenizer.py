"""A model's tokenizer as its files say it, with offsets and a padding token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tmerge_tui.errors import ModelError, TmergeError
from tmerge_tui.models.config import first_line, quiet
from tmerge_tui.models.remote_code import refuse_shared

FILE = "tokenizer.json"
PIECES = "tokenizer.model"  # of sentencepiece
# beside the files that a tokenizer's own class names
COMMON = (PIECES, "vocab.json", "merges.txt", "vocab.txt")
NAMING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # where special tokens are named
TEMPLATES = "additional_chat_templates"
# What transformers builds is compared with tokenizer.json on these: spaces, cases, digits, scripts, emoji, line breaks.
PROBES = (
    "The river bends  east, and 1234 lamps (don't count) burn.\n\tÉté, naïve; Straße.",
    "你好，世界。香港嘅茶 東京の空は青い。 서울의 강",
    "สวัสดีชาวโลก ສະບາຍດີ ជំរាបសួរ မင်္ဂလာပါ नमस्ते मित्र",
    "Привет, мир! Γειά σου. שלום עולם مرحبا بالعالم Ọ̀rọ̀ 😀🏽",
)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with a padding token; `tokenizer.tmerge_note` says when it is not what transformers' own
    guess would be. Raises ModelError when there is none, no fast one, or one that does not work."""
    tokenizer = _automatic(folder, trust_remote_code)
    try:
        return _tried(tokenizer, folder)
    except TmergeError:
        raise
    except Exception as error:  # what its files say is anyone's, and may be of any type
        raise ModelError(
            f"{folder} has a tokenizer that does not work: {type(error).__name__}: {first_line(error)}",
            "tokenizer files as save_pretrained writes them",
            "download the model with its tokenizer files",
        ) from error


def _tried(tokenizer: Any, folder: Path) -> Any:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{folder} has a tokenizer in pure Python ({type(tokenizer).__name__}), which knows no offsets",
            "a fast tokenizer (tokenizer.json)",
            "convert it with transformers, or choose a model that ships tokenizer.json",
        )
    words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    if not words:  # transformers makes an empty one when the files of a known family are not there
        raise ModelError(
            f"{folder} has a tokenizer without a vocabulary", "tokenizer.json", "download the model with its tokenizer"
        )
    tokenizer, note = _as_its_file(tokenizer, folder)
    _without_invented(tokenizer, folder)
    tokenizer.tmerge_note = note
    if tokenizer.pad_token is None:  # padding is masked, so any token does
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer(list(PROBES[:2]), padding=True, return_offsets_mapping=True)
    return tokenizer


def _without_invented(tokenizer: Any, folder: Path) -> None:
    """Takes back special tokens that transformers' class for a family adds and no file of the folder names: the model
    has no row for them."""
    from tokenizers import Tokenizer

    if not (folder / FILE).is_file():
        return
    own = Tokenizer.from_file(str(folder / FILE)).get_vocab()
    named = "".join((folder / name).read_text(encoding="utf-8") for name in NAMING if (folder / name).is_file())
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = getattr(tokenizer, name)
        if token is not None and token not in own and json.dumps(token)[1:-1] not in named and token not in named:
            setattr(tokenizer, name, None)


def differing(tokenizer: Any, folder: Path, texts: Iterable[str]) -> str | None:
    """The first of `texts` that the tokenizer reads otherwise than the folder's own file says (tokenizer.json, or a
    sentencepiece tokenizer.model without one), special tokens aside. None when there is none, or no such file."""
    own = _own(folder)
    if own is None:
        return None
    return next((text for text in texts if _pieces(tokenizer, text) != own(text)), None)


def tokenizer_files(folder: Path, trust_remote_code: bool = False) -> list[str]:
    """Names of the files in `folder` that its tokenizer is made of, templates included. Raises ModelError."""
    from transformers import tokenization_utils_base as base

    tokenizer = _automatic(folder, trust_remote_code)
    names = {
        *COMMON, *type(tokenizer).vocab_files_names.values(), FILE, base.TOKENIZER_CONFIG_FILE,
        base.SPECIAL_TOKENS_MAP_FILE, base.ADDED_TOKENS_FILE, base.CHAT_TEMPLATE_FILE, "chat_template.json",
    }  # fmt: skip
    extra = [f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja")]
    return sorted(name for name in (*names, *extra) if (folder / name).is_file())


def _automatic(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    if trust_remote_code:
        refuse_shared(folder, str(folder))
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizer code of any origin may raise anything
        raise ModelError(
            f"{folder} has no tokenizer that can be loaded: {first_line(error)}",
            "tokenizer.json, or files it can be made from",
            "download the model with its tokenizer files",
        ) from error


def _as_its_file(tokenizer: Any, folder: Path) -> tuple[Any, str]:
    """(the tokenizer that reads as tokenizer.json does, what to say about it).

    transformers rebuilds the tokenizers of some families around the vocabulary alone; the file is what the model was
    trained with. What tokenizer_config.json changes on purpose is no difference: there the direct reading has it too.
    """
    from transformers import PreTrainedTokenizerFast

    text = differing(tokenizer, folder, PROBES)
    if text is None or tokenizer.__class__.__module__.startswith("transformers_modules"):  # code of the model's own
        return tokenizer, ""
    try:
        with quiet():
            direct = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception:  # the automatic one stays, and what it does otherwise is said below
        direct = None
    kind = type(tokenizer).__name__
    file = FILE if (folder / FILE).is_file() else PIECES
    if file == FILE and direct is not None and all(_pieces(direct, t) == _pieces(tokenizer, t) for t in PROBES):
        return tokenizer, ""
    if direct is None or differing(direct, folder, PROBES) is not None:
        return tokenizer, (
            f"transformers reads it as {kind}, and text such as {text[:20]!r} otherwise than {file} does; whatever is "
            f"measured is of this reading"
        )
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
        value = getattr(tokenizer, name)
        known = name == "chat_template" or value in direct.get_vocab()
        if getattr(direct, name) is None and value is not None and known:
            setattr(direct, name, value)
    return direct, (
        f"transformers would rebuild it as {kind}, which reads text such as {text[:20]!r} otherwise than {FILE}; "
        f"{FILE} is used here, and whoever runs the model should load it with PreTrainedTokenizerFast"
    )


def _own(folder: Path) -> Callable[[str], list[str]] | None:
    """The pieces that the folder's own file makes of a text."""
    from tokenizers import Tokenizer

    if (folder / FILE).is_file():
        own = Tokenizer.from_file(str(folder / FILE))
        own.no_truncation()
        own.no_padding()
        return lambda text: list(own.encode(text, add_special_tokens=False).tokens)
    if (folder / PIECES).is_file():
        from sentencepiece import SentencePieceProcessor

        try:
            pieces = SentencePieceProcessor(model_file=str(folder / PIECES))
        except RuntimeError:  # tiktoken's files have that name too
            return None
        return lambda text: list(pieces.encode(text, out_type=str))
    return None


def _pieces(tokenizer: Any, text: str) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))
