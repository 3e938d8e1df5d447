"""The same tiny models and texts in the forms that people have them in."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>\n{% endfor %}"
OWN = {
    "configuration_own.py": """from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"
""",
    "modeling_own.py": """from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
""",
}


def quiet() -> None:
    """Keeps libraries from printing between the lines of the checks."""
    from transformers.utils import logging

    warnings.simplefilter("ignore", FutureWarning)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def formats(text: Path) -> Iterator[Path]:
    """The lines of a text file as .jsonl, .csv and .parquet beside it."""
    import pyarrow
    from pyarrow import parquet

    lines = text.read_text(encoding="utf-8").splitlines()
    rows = text.with_suffix(".jsonl")
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    yield rows
    table = text.with_suffix(".csv")
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([line] for line in lines)])
    yield table
    columns = text.with_suffix(".parquet")
    parquet.write_table(pyarrow.table({"text": lines}), columns)
    yield columns


def conversations(text: Path) -> Path:
    """The lines of a text file as chat messages."""
    lines = text.read_text(encoding="utf-8").splitlines()
    path = text.with_name("chat.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            messages = [{"role": "user", "content": line}, {"role": "assistant", "content": line[::-1]}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def chatty(model: Path, to: Path) -> Path:
    """The model with a chat template of its own."""
    shutil.copytree(model, to)
    (to / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return to


def adapter(base: Path, to: Path) -> Path:
    """A LoRA adapter of the model that is not zero."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    layers = ["q_proj", "v_proj", "down_proj"]
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=layers, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), options)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    wrapped.save_pretrained(to)
    return to


def pickled(model: Path, to: Path) -> Path:
    """The model with PyTorch's own file of weights."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(model, to)
    torch.save(load_file(to / "model.safetensors"), to / "pytorch_model.bin")
    (to / "model.safetensors").unlink()
    return to


def own_code(model: Path, to: Path) -> Path:
    """The Llama as an architecture that transformers does not know, with its code beside it."""
    shutil.copytree(model, to)
    for name, text in OWN.items():
        (to / name).write_text(text, encoding="utf-8")
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (to / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return to
