"""Activations of both sides of every projection, pooled into rows (eq. 6).

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
from torch import Tensor, nn

from tmerge_tui.engine.activations.pooling import Average, Encoded, Rows, encode
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import ModelError, NumericsError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.forward import ENDS, Batches, HookPoint, LoadedModel, padded, record, trunk
from tmerge_tui.models.layout import Layout, side_of
from tmerge_tui.recipe import Calibration
from tmerge_tui.run_folder import RunDir, key, open_piece

CHUNK_SAMPLES = 64
CHUNK_BYTES = 256 << 20  # of pooled activations; a chunk is held in memory until it is written


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
        name, parts = _name(layer, side), []
        for piece in self.pieces:
            with open_piece(piece) as file:
                if name not in file.keys():  # noqa: SIM118
                    raise KeyError(name)
                parts.append(file.get_tensor(name))
        return torch.cat(parts)


def extract(
    model: LoadedModel,
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
    facts, stage = model.facts, f"extract_{model.role}"
    encoded = encode(samples, model.tokenizer, calibration.max_length, calibration.pooling, calibration.chat_template)
    widths = _widths(facts.layout, kinds)
    read = [e.ids for e in encoded]
    cut = (CHUNK_SAMPLES, CHUNK_BYTES)
    piece_key = key(facts.fingerprint, read, rows.sha256, sorted(widths), str(model.dtype), cut)
    chunks = list(_chunks([len(words) for words in rows.words], 4 * sum(widths.values())))
    pieces = tuple(run.piece(f"activations-{model.role}", f"{piece_key}-c{i:04d}") for i in range(len(chunks)))
    tokens = [len(e.ids) if words else 0 for e, words in zip(encoded, rows.words, strict=True)]
    forward: _Forward | None = None
    with Progress(emit, stage, f"Activations of {facts.label}", sum(tokens), "tokens") as progress:
        for chunk, piece in zip(chunks, pieces, strict=True):
            if piece.exists():
                progress.skip(sum(tokens[chunk.start : chunk.stop]))
                continue
            forward = forward or _Forward(model, kinds, widths, calibration.batch_size, partial(_warn, emit, stage))
            note = f"sample {chunk.stop} of {len(samples)}"
            run.save(piece, forward.pool(encoded, rows, chunk, partial(progress.advance, note=note)))
    return Activations(facts.name, piece_key, rows.count, facts.layout, pieces)


class _Forward:
    """The model in memory, with the batch size that fits."""

    def __init__(
        self, model: LoadedModel, kinds: Sequence[str], widths: dict[str, int], batch: int, warn: Callable[[str], None]
    ) -> None:
        self.facts, self.dtype, self.device = model.facts, model.dtype, model.device
        self.kinds, self.widths = kinds, widths
        self.batches = Batches(model.facts.name, batch, model.device, warn)
        self.model = model.load()
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
        lengths = {i: len(encoded[i].ids) for i in chunk if rows.words[i]}

        def forward(batch: Sequence[int]) -> dict[str, Tensor]:
            return self._pooled([encoded[i] for i in batch], [rows.words[i] for i in batch])

        for batch, found in self.batches.run(lengths, forward):
            sizes = [len(rows.words[i]) for i in batch]
            for name, values in found.items():
                for i, part in zip(batch, values.cpu().split(sizes), strict=True):
                    pooled[name][start[i] : start[i] + len(part)] = part
            advance(sum(lengths[i] for i in batch))
        self._check(pooled)
        return pooled

    @torch.no_grad()
    def _pooled(self, encoded: Sequence[Encoded], words: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        """The rows of one batch."""
        ids, mask = padded([e.ids for e in encoded], self.device)
        length = ids.shape[1]
        flat = [
            [i * length + t for t in e.tokens[w]]
            for i, (e, ws) in enumerate(zip(encoded, words, strict=True))
            for w in ws
        ]
        with pool_sides(self.model, self.facts, self.kinds, Average.of(flat, self.device), ids.numel()) as found:
            self.trunk(input_ids=ids, attention_mask=mask, use_cache=False)
        missing = [name for name in self.widths if name not in found]
        if missing:
            raise ModelError(
                f"{self.facts.name}: {', '.join(missing[:4])} did not run in the forward pass",
                "a decoder that calls each of its projections",
                "the model's code skips them; leave these projections out of transport.projections",
            )
        return found

    def _check(self, pooled: dict[str, Tensor]) -> None:
        for name, values in pooled.items():
            if len(values) and not math.isfinite(sum(abs(extreme.item()) for extreme in values.aminmax())):
                layer, side = name.split(".", 1)
                raise NumericsError(
                    f"{self.facts.name}: activations of layer {layer}, side {side} hold NaN or Inf",
                    "finite activations",
                    f"check the model's weights{_try_float32(self.dtype)}",
                )


@contextmanager
def pool_sides(
    model: nn.Module, facts: ModelFacts, kinds: Sequence[str], average: Average, tokens: int
) -> Iterator[dict[str, Tensor]]:
    """Hooks every projection of `kinds`; while a forward pass of `tokens` runs, fills "layer.side" -> [rows, n] fp32.

    A side that several projections share is pooled once, after checking that they do receive the very same tensor.
    """
    found: dict[str, Tensor] = {}
    shared: dict[str, tuple[Tensor, int]] = {}  # what enters a shared side, and how many projections still have to come
    projections = [p for p in facts.layout.projections if p.kind in kinds]
    sharers = Counter(_name(p.layer, side_of(p.kind, "in")) for p in projections)

    def refuse(point: HookPoint, fact: str) -> ModelError:
        return ModelError(
            f"{facts.name}: {point.projection.module} {fact}",
            "decoder layers whose q, k, v (and gate, up) read one input, once in a forward pass",
            "this model cannot be merged in this version; please report its name",
        )

    def pool(point: HookPoint, name: str, seen: Tensor) -> None:
        flat = point.take(seen).flatten(0, -2)
        if name in found or flat.shape[0] != tokens:
            raise refuse(point, "ran twice" if name in found else f"saw {flat.shape[0]} of {tokens} tokens")
        found[name] = average @ flat

    def see(point: HookPoint, seen: Tensor) -> None:
        name = _name(point.projection.layer, point.side)
        if point.end == "out":
            pool(point, name, seen)
            return
        first, waiting = shared.get(name, (None, sharers[name]))
        if first is None:
            pool(point, name, seen)
        elif first is not seen:
            raise refuse(point, "does not read the tensor that its layer's other projections read")
        shared[name] = (seen, waiting - 1)
        if waiting == 1:
            del shared[name]

    with record(model, [HookPoint(p, end) for p in projections for end in ENDS], see):
        yield found


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


def _warn(emit: Emit, stage: str, message: str) -> None:
    emit(Warned(stage, message))


def _try_float32(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float32 else ", or set dtype: float32"
