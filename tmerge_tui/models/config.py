"""A model folder's config: read, refused when this method cannot merge such a model, and built without weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tmerge_tui.errors import ModelError
from tmerge_tui.files import parse_json
from tmerge_tui.models.licence import card_head
from tmerge_tui.models.remote_code import refuse_shared

CAUSAL = ("ForCausalLM", "LMHeadModel")
QUANTISED = ("quantization_config", "compression_config")
READ = "GGUF, FP8, compressed-tensors, GPTQ, AWQ or bitsandbytes"
TOOLS = {  # other methods -> the package that knows them
    "hqq": "hqq", "aqlm": "aqlm", "quanto": "optimum-quanto", "torchao": "torchao", "eetq": "eetq", "vptq": "vptq",
    "auto-round": "auto-round", "quark": "amd-quark", "modelopt": "nvidia-modelopt",
}  # fmt: skip
QUANTISER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # before config.json said it


def read_config(folder: Path, name: str, trust_remote_code: bool) -> Any:
    """The transformers config of a causal language model with attention.

    Raises ModelError for encoders, encoder-decoders, classifiers, pure state-space models,
    unknown types, and models that bring their own code when that is not allowed.
    """
    config = _load(folder, name, trust_remote_code)
    with understood(name):
        _refuse_other_tasks(config, name)
    return config


@contextlib.contextmanager
def understood(name: str) -> Iterator[None]:
    """For what reads a configuration that anyone may have written: values of a type that no model has are its fault.

    Raises ModelError for what Python says of them.
    """
    try:
        yield
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
        raise ModelError(
            f"{name}: config.json cannot be understood: {type(error).__name__}: {first_line(error)}",
            "values as save_pretrained writes them",
            "correct that value, or download the model again",
        ) from error


def quantisation(folder: Path) -> dict[str, Any] | None:
    """What config.json (or a file of an older tool beside it) says of how the weights are packed; `quant_method` names
    it, None where nothing does. Raises ValueError, OSError for a config.json that cannot be read."""
    data = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    sections = [data, data.get("text_config") or {}]
    found = next((part[key] for part in sections for key in QUANTISED if part.get(key)), None)
    if found is None:
        file = next((name for name in QUANTISER_FILES if (folder / name).is_file()), None)
        return None if file is None else {"quant_method": QUANTISER_FILES[file], **_object(folder / file)}
    return {"quant_method": None, **found} if isinstance(found, dict) else {"quant_method": None}


def _object(file: Path) -> dict[str, Any]:
    data = parse_json(file.read_text(encoding="utf-8") or "{}")
    return data if isinstance(data, dict) else {}


def refuse_quantised(folder: Path, name: str) -> None:
    """Raises ModelError when config.json names a quantisation, or is no JSON object."""
    try:
        found = quantisation(folder)
    except FileNotFoundError:
        return  # opening the checkpoint says what is missing
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{name}: config.json cannot be read", "a JSON object", "download the model again") from error
    if found is None:
        return
    base = front_matter(folder).get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    base = base if isinstance(base, str) else None
    method = found["quant_method"] or "unknown method"
    tool = f", or unpack it once with {TOOLS[method]} (pip install {TOOLS[method]})" if method in TOOLS else ""
    raise ModelError(
        f"{name} is quantised ({method})",
        f"plain float32, float16 or bfloat16 weights, or as a source {READ}",
        f"name the model it was made from{f': {base}' if base else ''}{tool}",
    )


def positions(config: Any) -> int | None:
    """Tokens that a model was made to read at once; None where its configuration sets no limit."""
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return min((int(count) for count in found if isinstance(count, int) and count > 0), default=None)


def build_on_meta(config: Any, name: str, trust_remote_code: bool) -> Any:
    """The model's modules without memory for their weights."""
    with quiet():
        try:
            with torch.device("meta"):
                return auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
        except Exception as error:  # model code of any origin may raise anything
            raise ModelError(
                f"{name}: transformers cannot build a {config.model_type} from its config.json: {first_line(error)}",
                "a config that fits the installed transformers",
                "upgrade transformers, or download the model again",
            ) from error


def auto_class(config: Any) -> Any:
    """The transformers class that loads a model with this config as its file has it: AutoModelForCausalLM, or
    AutoModelForImageTextToText for one that also sees."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    writes, sees = _class_names(config)
    if sees and (not writes or sees in (config.architectures or [])):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _class_names(config: Any) -> tuple[str | None, str | None]:
    """Classes with a language-model head that transformers has for this config: for text, for images with text."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    known = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    writes, sees = (mapping[type(config)].__name__ if type(config) in mapping else None for mapping in known)
    return writes, sees


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers and accelerate from writing to the terminal: only errors are logged, no bars are drawn."""
    from transformers.utils import logging as hf

    accelerate = logging.getLogger("accelerate")
    levels, bars = (hf.get_verbosity(), accelerate.level), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    accelerate.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hf.set_verbosity(levels[0])
        accelerate.setLevel(levels[1])
        if bars:
            hf.enable_progress_bar()


def front_matter(folder: Path) -> dict[str, Any]:
    """The fields at the head of the model card, README.md; none when there is no card or it has no such head."""
    try:
        return card_head(folder / "README.md")
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def first_line(error: Exception) -> str:
    """What a library says, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _load(folder: Path, name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if trust_remote_code:
        refuse_shared(folder, name)
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # config code of any origin may raise anything
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise ModelError(
                f"{name} brings its own Python code",
                "a model that the installed transformers knows",
                "read that code, then allow it with trust_remote_code: true under this model in the recipe",
            ) from error
        raise ModelError(
            f"{name}: transformers does not understand config.json: {first_line(error)}",
            "a model type that the installed transformers knows",
            "upgrade transformers, or download the model again",
        ) from error


def _refuse_other_tasks(config: Any, name: str) -> None:
    hint = "choose a decoder model that writes text, such as a Llama, Mistral, Qwen or Gemma"
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, config.get_text_config())):
        raise ModelError(f"{name} is an encoder-decoder ({config.model_type})", "a causal language model", hint)
    named = list(config.architectures or [])
    remote = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    known = [known for known in _class_names(config) if known]
    if not known and not remote:
        what = named[0] if named else config.model_type
        raise ModelError(f"{name} is no language model that writes text ({what})", "a causal language model", hint)
    if not remote and named and not any(a in known or a.endswith(CAUSAL) for a in named):
        raise ModelError(f"{name} is a {named[0]}, which writes no text", f"a {known[0]}", hint)
    if getattr(config.get_text_config(), "num_attention_heads", None) is None:
        raise ModelError(
            f"{name} has no attention ({config.model_type}, a state-space or recurrent model)",
            "a transformer with attention or feed-forward projections",
            hint,
        )
