"""Tiny random models of any family, saved as a user would have them on disk."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

LINES = [
    "In the beginning was the word and the word was read.",
    "Two rivers meet where the old road bends to the east.",
    "She counted seven lamps, nine doors and one grey cat.",
    "Nobody asked the miller why the wheel had stopped.",
    "Bread, salt, water; the rest we carry in our heads.",
    "A small boat can cross when the great ship must wait.",
] * 4


@functools.cache
def _bpe(vocab: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer.to_str()


def make_tokenizer(vocab: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text is representable, no unknown token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe(vocab)), bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def make_model(
    folder: Path,
    family: str = "llama",
    *,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 48,
    vocab: int = 320,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """Saves a random model with its tokenizer into `folder` and returns it."""
    known: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if family in ("qwen3", "gemma", "gemma2", "gemma3_text"):
        known["head_dim"] = hidden // heads
    known.update(config)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **known)).to(dtype).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    make_tokenizer(vocab).save_pretrained(folder)
    return folder


def make_text(path: Path, lines: int = 40, seed: int = 0) -> Path:
    """A .txt of distinct lines."""
    words = " ".join(LINES).replace(".", "").replace(",", "").split()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(lines):
        picks = torch.randint(len(words), (8 + i % 7,), generator=generator).tolist()
        rows.append(f"{i} " + " ".join(words[p] for p in picks) + ".")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps(data, indent=2))


def rewritten(folder: Path, out: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy of a model with every tensor of its files changed."""
    shutil.copytree(folder, out)
    for file in out.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
        tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata)
    return out
