"""Small language models trained from scratch on lines of text: tokenizer, batches, training, bits per byte.

What the `train_*.py` scripts of this folder share. Everything depends on its arguments and the seed alone: the same
command on the same machine gives the same bytes.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

END = "<|endoftext|>"  # id 0: begins and ends every line, and pads
IGNORED = -100


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a UTF-8 file."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def train_tokenizer(lines: Sequence[str], vocab: int) -> Tokenizer:
    """Byte-level BPE with `vocab` entries: any text can be written, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def make_model(family: str, vocab: int, seed: int, **config: int) -> PreTrainedModel:
    """A random model of a transformers family; `config` holds its widths and depth."""
    torch.manual_seed(seed)
    settings = AutoConfig.for_model(
        family,
        vocab_size=vocab,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **config,
    )
    return AutoModelForCausalLM.from_config(settings)


def batches(
    tokenizer: Tokenizer, lines: Sequence[str], tokens: int, shuffle: random.Random, longest: int = 256
) -> Iterator[torch.Tensor]:
    """One pass over `lines` in random order: ids [B, T], B * T about `tokens`, one line a row, padded with IGNORED.

    Lines of like length share a batch, so that little is padding.
    """
    ids = [[0, *encoding.ids[:longest], 0] for encoding in tokenizer.encode_batch(list(lines))]
    shuffle.shuffle(ids)
    ids.sort(key=lambda row: len(row) // 8)
    groups: list[list[list[int]]] = [[]]
    for row in ids:
        if groups[-1] and (len(groups[-1]) + 1) * len(row) > tokens:
            groups.append([])
        groups[-1].append(row)
    shuffle.shuffle(groups)
    for group in groups:
        width = max(map(len, group))
        yield torch.tensor([row + [IGNORED] * (width - len(row)) for row in group])


def train(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    passes: Sequence[Sequence[str]],
    *,
    rate: float,
    tokens: int,
    seed: int,
    label: str,
) -> None:
    """Next-token training, one pass over each of `passes` in turn, `tokens` a step.

    AdamW with warm-up to `rate` and a cosine down to a tenth of it.
    """
    shuffle = random.Random(seed)
    work = [batch for lines in passes for batch in batches(tokenizer, lines, tokens, shuffle)]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    warm = max(1, len(work) // 20)

    def pace(step: int) -> float:
        down = 0.55 + 0.45 * math.cos(math.pi * max(0, step - warm) / max(1, len(work) - warm))
        return min((step + 1) / warm, down)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, pace)
    model.train()
    began, smooth = time.monotonic(), 0.0
    for step, ids in enumerate(work):
        loss = _loss(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 99 or step + 1 == len(work):
            print(f"{label} step {step + 1}/{len(work)} loss {smooth:.3f} {time.monotonic() - began:.0f} s", flush=True)
    model.eval()


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokenizer: Tokenizer, lines: Sequence[str]) -> float:
    """Token losses in bits, begin-of-text prepended and end-of-text not counted, over the UTF-8 bytes of the lines."""
    bits = 0.0
    for ids in batches(tokenizer, lines, 4096, random.Random(0), longest=510):
        bits += _loss(model, ids, counted=ids[:, 1:] != 0, reduction="sum").item() / math.log(2)
    return bits / sum(len(line.encode()) for line in lines)


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype, card: str) -> None:
    """A folder as on the Hub: configuration, weights in `dtype`, tokenizer under the class name that all tools know.

    `card` is the text of its README.md below the licence, CC0 1.0.
    """
    model.to(dtype).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private to its writer
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": END,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": model.config.max_position_embeddings,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    front = "---\nlicense: cc0-1.0\nlanguage: [sw]\nlibrary_name: transformers\n---\n\n"
    (folder / "README.md").write_text(f"{front}{card}\n", encoding="utf-8")


def _loss(
    model: PreTrainedModel, ids: torch.Tensor, counted: torch.Tensor | None = None, reduction: str = "mean"
) -> torch.Tensor:
    """Cross-entropy in nats. Padding is on the right of causal models, so it needs no mask."""
    labels = ids[:, 1:] if counted is None else ids[:, 1:].masked_fill(~counted, IGNORED)
    logits = model(input_ids=ids[:, :-1].clamp(min=0), use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction=reduction)
