"""Bits per byte of a model on held-out text, and paired intervals between models. Lower is better.

Bytes do not depend on a tokenizer, so models with different vocabularies can be compared. What is scored is the plain
text of a sample (messages joined as lines, no chat template), without special tokens of the tokenizer's own, behind one
begin-of-text token when the tokenizer has one. When it has none, the first token has nothing before it and is not
scored, nor are tokens that share a character with it; their bytes are not counted either. The same holds for the tail
that `max_length` cuts. Losses are taken in fp32, whatever the type of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.data.tokens import read_head
from tmerge_tui.errors import DataError, ModelError
from tmerge_tui.models.forward import Batches, padded, trunk

LOGITS = 1 << 26  # logits held at once: 256 MB in fp32


@dataclass(frozen=True)
class Scores:
    """One entry for each text."""

    bits: tuple[float, ...]
    bytes: tuple[int, ...]  # UTF-8 bytes of what was scored; 0 where nothing could be

    @property
    def bits_per_byte(self) -> float:
        return sum(self.bits) / sum(self.bytes)

    def __add__(self, later: Scores) -> Scores:
        """Those of texts that follow each other."""
        return Scores(self.bits + later.bits, self.bytes + later.bytes)

    def first(self, texts: int) -> Scores:
        return Scores(self.bits[:texts], self.bytes[:texts])


@dataclass(frozen=True)
class Text:
    """Tokens of which those from `first` on are scored."""

    ids: tuple[int, ...]  # with the begin-of-text token
    first: int  # the first scored token
    bytes: int


def score(
    model: Any,  # a causal language model in eval mode
    tokenizer: Any,
    samples: Sequence[Sample],
    batch_size: int = 16,
    max_length: int = 512,  # tokens
    warn: Callable[[str], None] = lambda message: None,
    advance: Callable[[int], None] = lambda texts: None,
) -> Scores:
    """Token losses in bits, summed over each text, in the order of `samples`.

    Texts are batched by length; when memory runs out the batch is halved and `warn` says so. Raises MemoryShortage when
    one text alone does not fit, DataError when no byte can be scored, ModelError for a tokenizer without offsets.
    """
    texts = [text_of(sample.plain, tokenizer, max_length) for sample in samples]
    if not any(text.bytes for text in texts):
        raise DataError(
            f"none of {len(texts)} held-out texts has a token that can be scored", "texts of at least two tokens"
        )
    bits = losses(model, texts, batch_size, warn, advance)
    return Scores(tuple(bits), tuple(text.bytes for text in texts))


def losses(
    model: Any,
    texts: Sequence[Text],
    batch_size: int = 16,
    warn: Callable[[str], None] = lambda message: None,
    advance: Callable[[int], None] = lambda texts: None,
) -> list[float]:
    """Bits of the scored tokens of each text together, 0 where there are none. Raises MemoryShortage."""
    return [math.fsum(bits) for bits in token_losses(model, texts, batch_size, warn, advance)]


def token_losses(
    model: Any,
    texts: Sequence[Text],
    batch_size: int = 16,
    warn: Callable[[str], None] = lambda message: None,
    advance: Callable[[int], None] = lambda texts: None,
) -> list[list[float]]:
    """Bits of each scored token of each text. Raises MemoryShortage."""
    bits: list[list[float]] = [[] for _ in texts]
    lengths = {i: len(text.ids) for i, text in enumerate(texts) if text.bytes}
    advance(len(texts) - len(lengths))
    batches = Batches(type(model).__name__, batch_size, model.device, warn)
    for batch, found in batches.run(lengths, lambda batch: _bits(model, [texts[i] for i in batch])):
        for i, each in zip(batch, found, strict=True):
            bits[i] = each
        advance(len(batch))
    return bits


def paired_interval(a: Scores, b: Scores, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """(difference, low, high): bits per byte of `a` minus `b`, with its 95 % percentile bootstrap interval.

    Paired: each resample draws texts, with replacement, and takes both models' totals on the same draw. It covers
    chance in the choice of texts, not in training or calibration.
    """
    if len(a.bits) != len(b.bits):
        raise ValueError(f"{len(a.bits)} and {len(b.bits)} texts: the scores are not of the same hold-out")
    table = np.array([a.bits, a.bytes, b.bits, b.bytes], dtype=np.float64)  # [4, texts]
    a_bits, a_bytes, b_bits, b_bytes = resampled(table, resamples, seed)
    usable = (a_bytes > 0) & (b_bytes > 0)
    low, high = np.percentile(a_bits[usable] / a_bytes[usable] - b_bits[usable] / b_bytes[usable], [2.5, 97.5])
    return a.bits_per_byte - b.bits_per_byte, float(low), float(high)


def resampled(table: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """[rows, resamples] of a table [rows, texts]: sums over texts drawn with replacement, the same for every row."""
    rng, texts = np.random.default_rng(seed), table.shape[1]
    step = max(1, 2**22 // texts)  # at a time, so that memory does not grow with the hold-out
    parts = []
    for start in range(0, resamples, step):
        draws = rng.integers(texts, size=(min(step, resamples - start), texts))
        parts.append(table[:, draws].sum(2))
    return np.concatenate(parts, axis=1)


def between(a: Scores, b: Scores, resamples: int, seed: int) -> dict[str, float]:
    """The same as report.json has it: {"difference", "low", "high"}. Raises what `paired_interval` raises."""
    ends = paired_interval(a, b, resamples, seed)
    return dict(zip(("difference", "low", "high"), ends, strict=True))


def tokens(text: str, tokenizer: Any, count: int | None = None) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, character spans) of a text, without special tokens; with `count`, of at least so many tokens of a long one.

    Raises ModelError for a tokenizer without offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets",
            "a fast tokenizer (tokenizer.json)",
            "convert it with transformers first",
        )
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    encoded = (
        tokenizer(text, verbose=False, **options) if count is None else read_head(text, tokenizer, count, **options)[1]
    )
    return list(encoded["input_ids"]), encoded["offset_mapping"]


def text_of(text: str, tokenizer: Any, max_length: int) -> Text:
    """What of a text is read and scored; nothing (0 bytes) where a text gives no token to score."""
    ids, offsets, start, stop = _cut(text, tokenizer, max_length)
    if stop <= start:
        return Text((), 0, 0)
    begin = offsets[start - 1][1] if start else 0
    end = offsets[stop - 1][1] if stop < len(ids) else len(text)
    prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return Text((*prefix, *ids[:stop]), start + len(prefix), len(text[begin:end].encode()))


def byte_ends(text: str, tokenizer: Any, max_length: int) -> tuple[int, ...]:
    """Where the scored tokens of `text_of` begin and end in the bytes of the text: [scored tokens + 1], ascending.

    A byte belongs to the first token that reaches it: what stands between two tokens to the latter, a character that
    several share to the first of them.
    """
    ids, offsets, start, stop = _cut(text, tokenizer, max_length)
    if stop <= start:
        return ()
    at = offsets[start - 1][1] if start else 0
    ends = [len(text[:at].encode())]
    for i in range(start, stop):
        end = len(text) if i == len(ids) - 1 else max(offsets[i][1], at)
        ends.append(ends[-1] + len(text[at:end].encode()))
        at = end
    return tuple(ends)


def _cut(text: str, tokenizer: Any, max_length: int) -> tuple[list[int], list[tuple[int, int]], int, int]:
    """(ids, character spans, first scored token, last + 1); none scored where the last is not behind the first."""
    ids, offsets = tokens(text, tokenizer, max_length)
    bos = tokenizer.bos_token_id
    room = max_length - (bos is not None)
    stop = min(len(ids), room)
    # byte-level tokens can share one character: no cut inside it, its bytes would be counted for half of its tokens
    while 0 < stop < len(ids) and offsets[stop][0] < offsets[stop - 1][1]:
        stop -= 1
    start = 0 if bos is not None else 1
    while bos is None and start < stop and offsets[start][0] < offsets[start - 1][1]:
        start += 1
    return ids, offsets, start, stop


@torch.no_grad()
def _bits(model: Any, texts: Sequence[Text]) -> list[list[float]]:
    """Bits of each scored token."""
    ids, mask = padded([text.ids for text in texts], model.device)
    parts = []
    for first, logits in _logits(model, ids, mask):  # logits at position t are of token t + 1
        following = slice(first + 1, first + 1 + logits.shape[1])
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, following].flatten(), reduction="none")
        parts.append(losses.view(len(texts), -1).cpu().double())  # there is no fp64 on mps
    bits = torch.cat(parts, 1) / math.log(2)  # [B, T - 1]
    return [bits[row, text.first - 1 : len(text.ids) - 1].tolist() for row, text in enumerate(texts)]


def _logits(model: Any, ids: Tensor, mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first position, logits [B, step, vocabulary]) of all positions but the last, LOGITS at a time.

    The decoder runs once; only the head, with whatever the model does to its logits, is run for each stretch.
    """
    count = ids.shape[1] - 1
    if "logits_to_keep" not in signature(model.forward).parameters:
        yield 0, model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        return
    step = max(1, LOGITS // (ids.shape[0] * model.get_output_embeddings().weight.shape[0]))
    with _once(trunk(model)):
        for first in range(0, count, step):
            positions = torch.arange(first, min(first + step, count), device=ids.device)
            keep = {"logits_to_keep": positions, "use_cache": False}
            yield first, model(input_ids=ids, attention_mask=mask, **keep).logits


@contextmanager
def _once(module: nn.Module) -> Iterator[None]:
    """Inside the block `module` runs at its first call and gives the same output to every later one."""
    forward, own = module.forward, module.__dict__.get("forward")
    outputs: list[Any] = []

    def remembered(*args: Any, **options: Any) -> Any:
        if not outputs:
            outputs.append(forward(*args, **options))
        return outputs[0]

    module.__dict__["forward"] = remembered
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own
