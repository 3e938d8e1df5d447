"""Transport hints: the target's activations are to correlate with the source's, carried through P and Q. Ours.

For target layer l and a side, every word w of a training text has one row of the source's activations (the mean over
its tokens, so that tokenizers need not agree) in each source layer m. What is carried is

    Y[w] = sum over m of  P[l, m] Phi^{lm} z(Y_m[w])          P, Phi with rows normalised to 1

with z-scores as the plans were solved on. The loss is 1 - correlation between the target's own rows and these, per
channel over the words of a batch, mean over channels, layers and sides. Scale and offset of a channel do not matter.

The source reads each text once, ahead of all training; only carried rows are kept, in fp16, piece by piece, and read
from disk as training asks for them. `permuted` is the placebo: source channels in random order, all else the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmerge_tui.engine.activations.extract import extract
from tmerge_tui.engine.activations.pooling import Average, Rows, Word, encode
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.methods.transport_merge import channel_maps
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training.examples import Example
from tmerge_tui.errors import DataError
from tmerge_tui.events import Emit, Event, StageFinished, StageProgressed, StageStarted
from tmerge_tui.models.forward import HookPoint, LoadedModel, hook_point, record
from tmerge_tui.models.layout import Layout, side_of
from tmerge_tui.recipe import Calibration
from tmerge_tui.recipe.adaptation import Hints
from tmerge_tui.run_folder import RunDir, key, open_piece

STAGE = "hints"
CHUNK_SAMPLES = 64
KINDS = {"qkv.in": "q", "mlp.in": "gate"}  # a projection that has the side; of the others it is in the name

At = tuple[int, str]  # (target layer, side)


def kind_of(side: str) -> str:
    return KINDS.get(side, side.split(".")[0])


def check_hints(options: Hints, kinds: Sequence[str], depth: int) -> list[str]:
    """Problems with the hints of a recipe: sides that are not aligned, layers that are not there."""
    missing = [side for side in options.sides if not _kinds_with(side, kinds)]
    problems = []
    if missing:
        needed = " or ".join(dict.fromkeys(kind_of(side) for side in missing))
        problems.append(
            f"adaptation.hints.sides: {', '.join(missing)} is not aligned; add {needed} to transport.projections, or "
            f"choose other sides"
        )
    wrong = [layer for layer in options.layers or () if not 0 <= layer < depth]
    if wrong:
        problems.append(f"adaptation.hints.layers: found {wrong}, expected layers from 0 to {depth - 1} of the target")
    return problems


def _kinds_with(side: str, kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if side in (side_of(kind, "in"), side_of(kind, "out"))]


@dataclass(frozen=True)
class HintRows:
    """Carried rows of every training text, on disk; and the words they belong to."""

    key: str
    places: tuple[At, ...]
    words: tuple[tuple[Word, ...], ...]  # of each sample, in the order of its rows
    pieces: tuple[Path, ...] = field(repr=False)  # CHUNK_SAMPLES samples each

    @cached_property
    def _starts(self) -> list[int]:
        """Where each sample's rows begin in its piece."""
        starts, count = [], 0
        for i, words in enumerate(self.words):
            count = 0 if i % CHUNK_SAMPLES == 0 else count
            starts.append(count)
            count += len(words)
        return starts

    def rows(self, sample: int) -> dict[At, Tensor]:
        """Everywhere, [words of the sample, n] fp16. Raises StorageError."""
        start = self._starts[sample]
        with open_piece(self.pieces[sample // CHUNK_SAMPLES]) as file:
            return {at: file.get_slice(_name(at))[start : start + len(self.words[sample])] for at in self.places}


def carry_hints(
    source: LoadedModel,
    transports: Transports,
    samples: Sequence[Sample],
    examples: Sequence[Example],  # the target's, with words placed
    calibration: Calibration,
    length: int,  # tokens the source reads of a sample
    options: Hints,
    seed: int,
    variants: Sequence[str],  # "source", "permuted"
    run: RunDir,
    emit: Emit,
) -> dict[str, HintRows]:
    """Runs the source over the texts and keeps what is carried to the target, for each variant (stage "hints").

    The source is loaded only when a piece is missing. Raises DataError when the two models share no word, and what
    `extract` raises.
    """
    settings = calibration.model_copy(update={"pooling": "span", "max_length": max(8, length)})
    read = encode(samples, source.tokenizer, settings.max_length, "span", settings.chat_template)
    words = tuple(
        _spread([w for w in mine.words if w in its.tokens], options.words)
        for mine, its in zip(examples, read, strict=True)
    )
    if not any(words):
        raise DataError("the two models read no word of the training text alike", "text with words of its own")
    layers = range(transports.target.layers) if options.layers is None else sorted(set(options.layers))
    sides = {l: transports.target.layout.sides(l, transports.kinds) for l in layers}
    places = tuple((l, s) for s in options.sides for l in layers if s in sides[l] and transports.sources(s))
    found = {}
    for variant in variants:
        named = key(
            "hints-1", transports.key, source.facts.fingerprint, str(source.dtype), [e.ids for e in read], words,
            places, transports.options.top_layers, transports.kinds, seed if variant == "permuted" else None,
        )  # fmt: skip
        chunks = range(0, len(samples), CHUNK_SAMPLES)
        pieces = tuple(run.piece(f"hints-{variant}", f"{named}-c{i:04d}") for i in range(len(chunks)))
        found[variant] = HintRows(named, places, words, pieces)
    carrier = _Carrier(transports, seed)
    with Progress(emit, STAGE, "Carrying the source's activations", len(samples), "texts") as progress:
        for number, start in enumerate(range(0, len(samples), CHUNK_SAMPLES)):
            part = slice(start, start + CHUNK_SAMPLES)
            missing = {v: rows.pieces[number] for v, rows in found.items() if not rows.pieces[number].exists()}
            size = len(samples[part])
            if not missing:
                progress.skip(size)
                continue
            rows = Rows("span", words[part])
            if not rows.count:
                empty = {_name(at): torch.zeros(0, _width(transports.target.layout, *at)) for at in places}
                for path in missing.values():
                    run.save(path, {name: rows_of.half() for name, rows_of in empty.items()})
                progress.advance(size)
                continue
            kinds = [
                kind
                for kind in transports.kinds
                if any(kind in _kinds_with(s, transports.kinds) for s in options.sides)
            ]
            activations = extract(source, samples[part], rows, kinds, settings, run, _quietly(emit))
            for variant, path in missing.items():
                tensors = {
                    _name(at): carrier.carried(activations.side, *at, variant == "permuted").half() for at in places
                }
                run.save(path, tensors)
            for piece in activations.pieces:  # far larger than what was carried of them
                if piece not in getattr(transports.source, "pieces", ()):
                    piece.unlink(missing_ok=True)
            progress.advance(size)
    return found


class _Carrier:
    """Maps rows of source activations into the target's channels."""

    def __init__(self, transports: Transports, seed: int) -> None:
        self.transports, self.seed = transports, seed
        self.weights: dict[str, Tensor] = {}
        self.scales: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def carried(self, side_of_source: Callable[[int, str], Tensor], l: int, side: str, permuted: bool) -> Tensor:
        """Y [T, n] fp32 from Y_m [T, n'] of every source layer."""
        total: Tensor | None = None
        for m, weight in enumerate(self._weights(side)[l].tolist()):
            if weight <= 0:
                continue
            seed = self.seed if permuted else None
            Phi = channel_maps.channel_map(self.transports, side, l, m, "out", "barycentric", permuted=seed)
            mean, inverse = self._scale(m, side)
            Z = (side_of_source(m, side) - mean) * inverse
            part = weight * (Z.to(Phi) @ Phi.T)
            total = part if total is None else total + part
        assert total is not None, f"no source layer for {side} of target layer {l}"
        return total.cpu()

    def _weights(self, side: str) -> Tensor:
        if side not in self.weights:
            kind = _kinds_with(side, self.transports.kinds)[0]
            self.weights[side] = channel_maps.layer_weights(self.transports.layer_plan(kind).P, "barycentric")
        return self.weights[side]

    def _scale(self, m: int, side: str) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation [n'] of the calibration rows: what the plans' z-scores are made with."""
        if (m, side) not in self.scales:
            Y = self.transports.source.side(m, side)
            self.scales[m, side] = Y.mean(0), channel_maps.inverse(Y.std(0))
        return self.scales[m, side]


class HintLoss:
    """The loss of one batch. Use: `with hints.watching(): logits = model(...)`, then `hints.loss(batch, logits)`."""

    replaces = False

    def __init__(
        self, model: nn.Module, layout: Layout, examples: Sequence[Example], rows: HintRows, weight: float
    ) -> None:
        self.examples, self.rows, self.weight = examples, rows, weight
        self.model, self.points = model, {hook_point(layout, *at): at for at in rows.places}
        self._seen: dict[HookPoint, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes the activations of a forward pass as they are: with gradients, and nothing computed on them yet for
        which a tensor would be saved, so that gradient checkpointing saves the same tensors twice."""
        self._seen.clear()

        def note(point: HookPoint, seen: Tensor) -> None:
            self._seen[point] = seen.clone() if point.end == "out" else seen

        with record(self.model, self.points, note):
            yield

    def loss(self, batch: Mapping[str, Any], logits: Tensor) -> tuple[Tensor, int]:
        """(1 - correlation over the words of the batch, 1); count 0 when it has fewer than 3 words."""
        parts, width = batch["parts"], logits.shape[1]
        tokens: list[list[int]] = []
        chosen: list[tuple[int, list[int]]] = []  # sample, which of its rows
        for row, samples in enumerate(parts):
            for sample, begin in samples:
                mine = []
                for number, word in enumerate(self.rows.words[sample]):
                    places = [begin + t for t in self.examples[sample].words[word]]
                    if places[0] >= 0 and places[-1] < width:  # else the block cuts the word
                        tokens.append([row * width + t for t in places])
                        mine.append(number)
                if mine:
                    chosen.append((sample, mine))
        seen = dict(self._seen)
        self._seen.clear()
        if len(tokens) < 3:
            return 0 * logits.sum(), 0
        average = Average.of(tokens, next(iter(seen.values())).device)
        carried = [(self.rows.rows(sample), mine) for sample, mine in chosen]
        losses = []
        for point, activations in seen.items():
            X = average @ point.take(activations).flatten(0, -2)
            Y = torch.cat([rows[self.points[point]][mine] for rows, mine in carried]).to(X)
            losses.append(decorrelation(X, Y))
        return torch.stack(losses).mean(), 1


def decorrelation(X: Tensor, Y: Tensor) -> Tensor:
    """1 - Pearson correlation of columns, mean over those that vary in both; X, Y [T, n]; 1 when none does."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    norms = torch.linalg.vector_norm(X, dim=0), torch.linalg.vector_norm(Y, dim=0)
    live = (norms[0] > 1e-6) & (norms[1] > 1e-6)
    if not live.any():
        return 1 + 0 * X.sum()
    rho = (X[:, live] * Y[:, live]).sum(0) / (norms[0][live] * norms[1][live])
    return 1 - rho.mean()


def _name(at: At) -> str:
    """Of its rows in a piece."""
    return f"{at[0]}.{at[1]}"


def _width(layout: Layout, layer: int, side: str) -> int:
    width = layout.width(layer, side)
    assert width is not None
    return width


def _spread(words: Sequence[Word], count: int) -> tuple[Word, ...]:
    """At most `count` of them, evenly."""
    if len(words) <= count:
        return tuple(words)
    return tuple(words[i * len(words) // count] for i in range(count))


def _quietly(emit: Emit) -> Emit:
    """Without the extraction's own stage: it is a part of this one."""

    def passed(event: Event) -> None:
        if not isinstance(event, (StageStarted, StageProgressed, StageFinished)):
            emit(event)

    return passed
