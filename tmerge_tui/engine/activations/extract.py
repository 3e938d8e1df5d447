"""Activations of both sides of every projection, pooled into rows (eq. 6), and neuron strengths (A.5).

Hooks on the projections reduce each activation to its rows at once, so what is kept is [rows, n] and never [tokens, n].
Only the decoder trunk runs: no logits are computed. Statistics are fp32 whatever the type of the forward pass.
Work is cut into chunks of samples, one piece of the run folder each, that do not depend on the batch size; a chunk that
is there is not computed again, and when all are there the model is not even loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tmerge_tui.engine.activations.pooling import Average, Encoded, Rows, encode
from tmerge_tui.engine.data.corpus import Sample, missing_template
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import MemoryShortage, ModelError, NumericsError, StorageError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.layout import Layout, Projection, side_of
from tmerge_tui.recipe import Calibration
from tmerge_tui.run_folder import RunDir, key

CHUNK_SAMPLES = 64
CHUNK_BYTES = 256 << 20  # of pooled activations; a chunk is held in memory until it is written
ALLOCATION_FAILED = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass(frozen=True)
class Subject:
    """A model that is to read the samples. `load` is called once, and only when a chunk is missing."""

    role: str  # "source" | "target"
    facts: ModelFacts
    tokenizer: Any
    load: Callable[[], nn.Module]  # in eval mode, on `device`
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Activations:
    """Pooled activations of one model, read one side at a time from the pieces of the run folder."""

    name: str  # of the model
    key: str  # names the content: model, tokens, rows, sides, type of the forward pass
    rows: int  # T
    layout: Layout
    pieces: tuple[Path, ...] = field(repr=False)

    @property
    def layers(self) -> int:
        return self.layout.layers

    def side(self, layer: int, side: str) -> Tensor:
        """X or Y [T, n] fp32. Raises StorageError when a piece is damaged, KeyError for a side never recorded."""
        return torch.cat([_read(piece, _name(layer, side)) for piece in self.pieces])

    def strength(self, layer: int, side: str) -> Tensor:
        """s [n]: mean over rows of |pooled activation| (A.5)."""
        return self.side(layer, side).abs().mean(0)


def extract(
    subject: Subject,
    samples: Sequence[Sample],
    rows: Rows,
    kinds: Sequence[str],
    calibration: Calibration,
    run: RunDir,
    emit: Emit,
) -> Activations:
    """Runs the model over the samples and keeps `rows` of every side that `kinds` have (eq. 6).

    `rows` is what `plan_rows` gave for these samples and both tokenizers. Stage: extract_source or extract_target.
    Raises NumericsError (NaN or Inf), MemoryShortage (one sample is too much), ModelError (a projection that does not
    run as its layout says), StorageError, DataError.
    """
    facts, stage = subject.facts, f"extract_{subject.role}"
    if missing_template(samples, subject.tokenizer, calibration.chat_template):
        emit(Warned(stage, f"{facts.name} has no chat template: messages are joined as lines `role: content`"))
    encoded = encode(samples, subject.tokenizer, calibration.max_length, calibration.pooling, calibration.chat_template)
    widths = _widths(facts.layout, kinds)
    read = [e.ids for e in encoded]
    cut = (CHUNK_SAMPLES, CHUNK_BYTES)
    piece_key = key(facts.fingerprint, read, rows.sha256, sorted(widths), str(subject.dtype), cut)
    chunks = list(_chunks([len(words) for words in rows.words], 4 * sum(widths.values())))
    pieces = tuple(run.piece(f"activations-{subject.role}", f"{piece_key}-c{i:04d}") for i in range(len(chunks)))
    tokens = [len(e.ids) if words else 0 for e, words in zip(encoded, rows.words, strict=True)]
    worker: _Worker | None = None
    with Progress(emit, stage, f"Activations of {facts.label}", sum(tokens), "tokens") as progress:
        for chunk, piece in zip(chunks, pieces, strict=True):
            if piece.exists():
                progress.skip(sum(tokens[chunk.start : chunk.stop]))
                continue
            worker = worker or _Worker(subject, kinds, widths, calibration.batch_size, partial(_warn, emit, stage))
            note = f"sample {chunk.stop} of {len(samples)}"
            run.save(piece, worker.pool(encoded, rows, chunk, partial(progress.advance, note=note)))
    return Activations(facts.name, piece_key, rows.count, facts.layout, pieces)


class _Worker:
    """The loaded model with the batch size that fits."""

    def __init__(
        self, subject: Subject, kinds: Sequence[str], widths: dict[str, int], batch: int, warn: Callable[[str], None]
    ) -> None:
        self.subject, self.kinds, self.widths, self.batch, self.warn = subject, kinds, widths, batch, warn
        self.model = subject.load()
        self.trunk = trunk(self.model)

    def pool(
        self, encoded: Sequence[Encoded], rows: Rows, chunk: range, advance: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """The rows of one chunk, in order of samples and words: name -> [rows, n] fp32 on the CPU."""
        start, count = {}, 0
        for i in chunk:
            start[i] = count
            count += len(rows.words[i])
        pooled = {name: torch.empty(count, width) for name, width in self.widths.items()}
        waiting = sorted((i for i in chunk if rows.words[i]), key=lambda i: -len(encoded[i].ids))
        while waiting:
            batch = waiting[: self.batch]
            found = self._try([encoded[i] for i in batch], [rows.words[i] for i in batch])
            if found is None:
                continue
            sizes = [len(rows.words[i]) for i in batch]
            for name, values in found.items():
                for i, part in zip(batch, values.cpu().split(sizes), strict=True):
                    pooled[name][start[i] : start[i] + len(part)] = part
            waiting = waiting[len(batch) :]
            advance(sum(len(encoded[i].ids) for i in batch))
        self._check(pooled)
        return pooled

    def _try(self, encoded: Sequence[Encoded], words: Sequence[Sequence[Any]]) -> dict[str, Tensor] | None:
        """One batch; None after halving the batch size because memory ran out."""
        try:
            return self._forward(encoded, words)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not out_of_memory(error):
                raise
            if len(encoded) == 1:
                raise MemoryShortage(
                    f"{self.subject.facts.name}: no memory for one sample of {len(encoded[0].ids)} tokens on "
                    f"{self.subject.device}",
                    "memory for a forward pass of a single sample",
                    "lower calibration.max_length, set memory: to stream the weights, or use another device",
                ) from error
        # after the except block, so that the failed pass and its tensors are gone
        if self.subject.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch = len(encoded) // 2
        self.warn(f"out of memory: batch size is now {self.batch}")
        return None

    @torch.no_grad()
    def _forward(self, encoded: Sequence[Encoded], words: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        length = max(len(e.ids) for e in encoded)
        ids = torch.zeros(len(encoded), length, dtype=torch.long)  # padded on the right with any token: it is masked
        mask = torch.zeros_like(ids)
        for i, e in enumerate(encoded):
            ids[i, : len(e.ids)] = torch.tensor(e.ids)
            mask[i, : len(e.ids)] = 1
        flat = [
            [i * length + t for t in e.tokens[w]]
            for i, (e, ws) in enumerate(zip(encoded, words, strict=True))
            for w in ws
        ]
        average = Average.of(flat, self.subject.device)
        with record(self.model, self.subject.facts, self.kinds, average, ids.numel()) as found:
            self.trunk(
                input_ids=ids.to(self.subject.device), attention_mask=mask.to(self.subject.device), use_cache=False
            )
        missing = [name for name in self.widths if name not in found]
        if missing:
            raise ModelError(
                f"{self.subject.facts.name}: {', '.join(missing[:4])} did not run in the forward pass",
                "a decoder that calls each of its projections",
                "the model's code skips them; leave these projections out of transport.projections",
            )
        return found

    def _check(self, pooled: dict[str, Tensor]) -> None:
        for name, values in pooled.items():
            if len(values) and not math.isfinite(sum(abs(extreme.item()) for extreme in values.aminmax())):
                layer, side = name.split(".", 1)
                raise NumericsError(
                    f"{self.subject.facts.name}: activations of layer {layer}, side {side} hold NaN or Inf",
                    "finite activations",
                    f"check the model's weights{_try_float32(self.subject.dtype)}",
                )


@contextmanager
def record(
    model: nn.Module, facts: ModelFacts, kinds: Sequence[str], average: Average, tokens: int
) -> Iterator[dict[str, Tensor]]:
    """Hooks every projection of `kinds`; while a forward pass of `tokens` runs, fills "layer.side" -> [rows, n] fp32.

    A side that several projections share is pooled once, after checking that they do receive the very same tensor.
    """
    found: dict[str, Tensor] = {}
    shared: dict[
        str, tuple[Tensor, int]
    ] = {}  # the input of a shared side, and how many projections still have to come
    projections = [p for p in facts.layout.projections if p.kind in kinds]
    sharers = Counter(_name(p.layer, side_of(p.kind, "in")) for p in projections)

    def refuse(projection: Projection, fact: str) -> ModelError:
        return ModelError(
            f"{facts.name}: {projection.module} {fact}",
            "decoder layers whose q, k, v (and gate, up) read one input, once in a forward pass",
            "this model cannot be merged in this version; please report its name",
        )

    def pool(projection: Projection, name: str, activations: Tensor) -> None:
        flat = activations.flatten(0, -2)
        if name in found or flat.shape[0] != tokens:
            raise refuse(projection, "ran twice" if name in found else f"saw {flat.shape[0]} of {tokens} tokens")
        found[name] = average @ flat

    def hook(projection: Projection, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        into = _name(projection.layer, side_of(projection.kind, "in"))
        first, waiting = shared.get(into, (None, sharers[into]))
        if first is None:
            pool(projection, into, args[0])
        elif first is not args[0]:
            raise refuse(projection, "does not read the tensor that its layer's other projections read")
        shared[into] = (args[0], waiting - 1)
        if waiting == 1:
            del shared[into]
        pool(projection, _name(projection.layer, side_of(projection.kind, "out")), projection.output(output))

    handles = [model.get_submodule(p.module).register_forward_hook(partial(hook, p)) for p in projections]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def trunk(model: nn.Module) -> nn.Module:
    """The decoder without its language-model head."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    if decoder is None or decoder is model:
        raise ModelError(
            f"{type(model).__name__} has no decoder apart from its head", "a causal language model", "check the model"
        )
    return decoder


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in ALLOCATION_FAILED)


def _name(layer: int, side: str) -> str:
    return f"{layer}.{side}"


def _widths(layout: Layout, kinds: Sequence[str]) -> dict[str, int]:
    """ "layer.side" -> n of everything to record, layers first."""
    widths = {}
    for layer in range(layout.layers):
        for side in layout.sides(layer, kinds):
            width = layout.width(layer, side)
            assert width is not None
            widths[_name(layer, side)] = width
    return widths


def _chunks(rows: Sequence[int], row_bytes: int) -> Iterator[range]:
    """Consecutive samples: at most CHUNK_SAMPLES, and CHUNK_BYTES unless one sample alone has more."""
    start, held = 0, 0
    for i, count in enumerate(rows):
        if i > start and (i - start == CHUNK_SAMPLES or (held + count) * row_bytes > CHUNK_BYTES):
            yield range(start, i)
            start, held = i, 0
        held += count
    yield range(start, len(rows))


def _read(piece: Path, name: str) -> Tensor:
    try:
        with safe_open(piece, "pt") as file:
            if name not in file.keys():  # noqa: SIM118
                raise KeyError(name)
            return file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{piece}: {error}", "a piece that this run finished", "delete that file and run again"
        ) from error


def _warn(emit: Emit, stage: str, message: str) -> None:
    emit(Warned(stage, message))


def _try_float32(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float32 else ", or set dtype: float32"
