"""Distillation within one tokenizer: the source reads each batch beside the target.

KL(teacher || student) of the next-token distributions at every labelled position; what `byte_events` comes to when
every event is a token. Across tokenizers the teacher is a cache of byte events (`teacher`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.training.examples import IGNORED, read_examples

SAME = "KL of next-token distributions at every position (same tokenizer)"
ACROSS = "KL of what the next bytes are, in {events} events a position, {positions} (different tokenizers)"
POSITIONS = {
    "both": "at the positions where both tokenizers end a token",
    "every": "at every position of the target",
}


def same_tokenizer(ours: Any, theirs: Any, samples: Sequence[Sample], mode: str) -> bool:
    """Whether both tokenizers have one vocabulary and give the same ids for these samples."""
    if ours.get_vocab() != theirs.get_vocab():
        return False
    pairs = (read_examples(samples, tokenizer, 0, mode) for tokenizer in (ours, theirs))
    return all(a.ids == b.ids for a, b in zip(*pairs, strict=True))


class TokenTerm:
    """The loss against what the source says of the same tokens."""

    replaces = True

    def __init__(self, model: Any, weight: float) -> None:
        self.model, self.weight = model, weight  # in eval mode, without gradients, on the device of the training

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()

    def loss(self, batch: Mapping[str, Any], logits: Tensor) -> tuple[Tensor, int]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            theirs = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        size = min(theirs.shape[-1], logits.shape[-1])  # embeddings may be padded to different sizes
        compared = batch["labels"][:, 1:] != IGNORED
        student = F.log_softmax(logits[:, :-1, :size][compared].float(), -1)
        teacher = F.log_softmax(theirs[:, :-1, :size][compared].float(), -1)
        return F.kl_div(student, teacher, reduction="sum", log_target=True), int(compared.sum())
