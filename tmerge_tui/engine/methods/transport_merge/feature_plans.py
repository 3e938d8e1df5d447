"""The transport stage: feature plans of every pair of layers and side (eqs. 8-9), then layer plans (eqs. 10-13).

Only duals are kept, in one piece per target layer and side: aligning one more projection redoes nothing, a changed
epsilon does. Plans are rebuilt from z-scores where they are needed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from tmerge_tui.engine.methods.transport_merge.head_plans import ORDERS, Attention, HeadPlans
from tmerge_tui.engine.methods.transport_merge.head_plans import SIDES as HEAD_SIDES
from tmerge_tui.engine.methods.transport_merge.layer_plans import LayerPlan, layer_plan
from tmerge_tui.engine.methods.transport_merge.showcase import Showcase
from tmerge_tui.engine.methods.transport_merge.structure import Group, groups
from tmerge_tui.engine.optimal_transport.cost import CorrelationCosts, zscore
from tmerge_tui.engine.optimal_transport.sinkhorn import SOLVERS, Solution, plan
from tmerge_tui.engine.optimal_transport.stopping import Stopping
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, HeatMap, LayerPlanSolved, PairSolved, Warned, pack_cells
from tmerge_tui.models.layout import SIDES, Layout, side_of
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport
from tmerge_tui.run_folder import RunDir, key

STAGE = "transport"
ZSCORES = 1 << 30  # bytes of z-scores kept at hand
CALL = {"cpu": 1 << 26, "cuda": 1 << 30}  # plan entries in one call of the solver
CELLS = 64  # a heat map has at most this many rows and columns


class Pooled(Protocol):
    """What the stage needs of `extract.Activations`."""

    @property
    def key(self) -> str: ...

    @property
    def layers(self) -> int: ...

    @property
    def layout(self) -> Layout: ...

    def side(self, layer: int, side: str) -> Tensor: ...


@dataclass(frozen=True)
class TransportResult:
    """The solved feature plan Q^{lm} of one side."""

    l: int  # target layer
    m: int  # source layer
    side: str
    epsilon: float
    solution: Solution

    def plan(self, Zx: Tensor, Zy: Tensor, rows: Tensor | None = None) -> Tensor:
        """Q [n, n'] fp32 (or only `rows` of it) from the z-scores of both layers."""
        return plan(CorrelationCosts(Zx, [Zy]), self.epsilon, self.solution, rows=rows)


@dataclass(frozen=True)
class Mass:
    """Share of a row's transport mass in its largest entries, mean over rows (the paper's figure 3)."""

    side: str
    l: int
    m: int
    entries: tuple[int, ...]  # 1, 2, 4, ..., n'
    share: tuple[float, ...]


class ZScores:
    """Z [T, n] of layers and sides on the device, the last used kept within ZSCORES bytes.

    A side that leads a group stands for its S sides: [S T, n], at 1 / sqrt(S).
    """

    def __init__(self, pooled: Pooled, role: str, device: torch.device, shared: Sequence[Group] = ()) -> None:
        self.pooled, self.role, self.device = pooled, role, device
        self.shared = {group[0]: group for group in shared}
        self.kept: OrderedDict[tuple[int, str], Tensor] = OrderedDict()

    def __call__(self, layer: int, side: str) -> Tensor:
        at = (layer, side)
        if at in self.kept:
            self.kept.move_to_end(at)
            return self.kept[at]
        group = self.shared.get(side)
        Z = self._scores(layer, side)
        if group is not None:
            Z = torch.cat([Z, *(self._scores(layer, other) for other in group[1:])]).div_(len(group) ** 0.5)
        self.kept[at] = Z
        while len(self.kept) > 1 and sum(z.nbytes for z in self.kept.values()) > ZSCORES:
            self.kept.popitem(last=False)
        return Z

    def _scores(self, layer: int, side: str) -> Tensor:
        return zscore(self.pooled.side(layer, side).to(self.device), f"{self.role} model, layer {layer}, {side}")


@dataclass(frozen=True)
class Transports:
    """All plans of a run, read from its pieces; l counts target layers, m source layers."""

    models: Pair[Pooled]
    kinds: tuple[str, ...]
    options: Transport
    run: RunDir
    zx: Callable[[int, str], Tensor] = field(repr=False)  # (l, side) -> Z [T, n]
    zy: Callable[[int, str], Tensor] = field(repr=False)  # (m, side) -> Z [T, n']
    shared: tuple[Group, ...] = ()  # sides under one plan
    heads: HeadPlans | None = None  # plans that move whole heads
    _pairs: dict[tuple[Path, str], dict[int, dict[str, Any]]] = field(default_factory=dict, repr=False)

    @property
    def target(self) -> Pooled:
        return self.models.target

    @property
    def source(self) -> Pooled:
        return self.models.source

    @property
    def key(self) -> str:
        """Names the content: activations and every option that plans depend on; not what was asked for, nor where."""
        how = self.options.that_affect("plans", "layers")
        if not how["structure"]:  # as before there was any
            del how["structure"]
        return key("transports-1", self.target.key, self.source.key, how)

    def sources(self, side: str) -> tuple[int, ...]:
        """Source layers that have the side."""
        return tuple(m for m in range(self.source.layers) if side in self.source.layout.sides(m, self.kinds))

    def leading(self, side: str) -> str:
        """The side whose plan this one has: its own, or that of its group's first."""
        return next((group[0] for group in self.shared if side in group), side)

    def order(self, side: str) -> str:
        """The side whose source channels the placebo's random order is drawn for: one for a space."""
        return ORDERS.get(side, side) if self.headed(side) else self.leading(side)

    def headed(self, side: str) -> bool:
        """Whether its plan moves whole heads."""
        return self.heads is not None and side in HEAD_SIDES.values()

    def solved(self) -> tuple[tuple[int, str], ...]:
        """(l, side) of every piece, side by side, so that the source's z-scores of a side are used while at hand."""
        L = range(self.target.layers)
        there = {l: self.target.layout.sides(l, self.kinds) for l in L}
        return tuple((l, s) for s in SIDES for l in L if s in there[l] and self.sources(s) and self.leading(s) == s)

    def piece(self, l: int, side: str) -> Path:
        if self.heads is not None and self.headed(side):
            return self.heads.piece(l, self.sources(side))
        side = self.leading(side)
        how = [getattr(self.options, name) for name in self.options.affecting("plans") if name != "structure"]
        parts = ["transport-1", self.target.key, self.source.key, l, side, self.sources(side), how]
        parts += [group for group in self.shared if side in group]
        return self.run.piece(STAGE, key(*parts))

    def result(self, side: str, l: int, m: int) -> TransportResult:
        """Raises KeyError for a pair in which one model lacks the side."""
        pair = self.pairs(l, side)[m]
        tensors, _ = self.run.load(self.piece(l, side))
        solution = Solution(f=tensors[f"f.{m}"], g=tensors[f"g.{m}"], **pair)
        return TransportResult(l, m, side, self.options.epsilon, solution)

    def pairs(self, l: int, side: str) -> dict[int, dict[str, Any]]:
        """Source layer -> scalars of the solution (cost, iterations, violation ...) of one target layer and side."""
        side = self.leading(side)
        at = self.piece(l, side), side
        if at not in self._pairs:
            _, meta = self.run.load(at[0])
            found = meta["pairs"][side] if self.headed(side) else meta["pairs"]
            self._pairs[at] = {int(m): pair for m, pair in found.items()}
        return self._pairs[at]

    def layer_cost(self, side: str) -> Tensor:
        """C_layer [L, M] fp64 of one side (eq. 10); nan where one of the two layers lacks it."""
        C = torch.full((self.target.layers, self.source.layers), math.nan, dtype=torch.float64)
        for l, solved in self.solved():
            if solved == self.leading(side):
                for m, pair in self.pairs(l, side).items():
                    C[l, m] = pair["cost"]
        return C

    def layer_plan(self, kind: str) -> LayerPlan:
        """P_in, P_out, P_eff and P [L, M] of one projection (eqs. 11-13)."""
        layouts = self.models.each(lambda model: model.layout)
        there = layouts.each(lambda o: torch.tensor([o.get(i, kind) is not None for i in range(o.layers)]))
        costs = [self.layer_cost(side_of(kind, "in")), self.layer_cost(side_of(kind, "out"))]
        return layer_plan(kind, costs[0], costs[1], there, self.options)

    def plan(self, side: str, l: int, m: int) -> Tensor:
        """Q [n, n'] fp32."""
        if self.heads is not None and self.headed(side):
            return self.heads.plan(l, self.sources(side), side, m).to(self.zx(l, side).device)
        side = self.leading(side)
        return self.result(side, l, m).plan(self.zx(l, side), self.zy(m, side))

    def mass(self, side: str, l: int, m: int) -> Mass:
        """How concentrated the rows of a plan are (the paper's figure 3)."""
        Q = self.plan(side, l, m)
        share = (Q.double().sort(dim=1, descending=True).values.cumsum(1) / Q.double().sum(1, keepdim=True)).mean(0)
        entries = [2**i for i in range(Q.shape[1].bit_length()) if 2**i < Q.shape[1]] + [Q.shape[1]]
        return Mass(side, l, m, tuple(entries), tuple(share[k - 1].item() for k in entries))

    def heatmap(self, side: str, l: int, m: int) -> HeatMap:
        """The plan pooled to at most 64 x 64 cells, in channel order.

        A cell is log10 of the largest n n' Q_ij in it: 0 is the uniform plan, 1 ten times its mass. The maximum keeps
        single matches visible that an average over 64 x 32 entries would wash out.
        """
        Q = self.plan(side, l, m)
        n, width = Q.shape
        cells = adaptive_max_pool2d(Q[None, None], (min(n, CELLS), min(width, CELLS)))[0, 0]
        cells = (cells * n * width).clamp_min(1e-6).log10_()
        lo, hi = cells.min().item(), cells.max().item()
        scaled = ((cells - lo) * (255 / max(hi - lo, 1e-12))).round_().to(torch.uint8).cpu()
        data = pack_cells(scaled.numpy().tobytes())
        return HeatMap(f"{side} {l} ← {m}", l, m, side, cells.shape[0], cells.shape[1], lo, hi, data)


Piece = tuple[int, str]  # target layer and side
Part = tuple[int, str, dict[int, Solution]]  # of a piece: some of its source layers
Parts = Generator[Part, None, None]
Solver = Callable[[Transports, Sequence[Piece]], Parts]


def transport(
    models: Pair[Pooled],
    kinds: Sequence[str],
    options: Transport,
    run: RunDir,
    emit: Emit,
    device: torch.device | str = "cpu",
    solver: Solver | None = None,
    attention: Attention | None = None,  # of both models, where heads are to be matched whole
) -> Transports:
    """Solves every pair of layers and side that `kinds` have in both models; finished pieces are read, not redone.

    `solver` gives the parts of the missing pieces, in any order; without one this process solves them. A device without
    fp64 (mps) leaves this stage to the CPU. Raises NumericsError (NaN or Inf in activations), StorageError, and what
    the solver raises.
    """
    device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
    layouts = models.each(lambda model: model.layout)
    shared, notices = groups(layouts, kinds, options)
    heads, others = HeadPlans.of(run, models.each(lambda model: model.key), layouts, kinds, attention, options)
    for notice in (*notices, *others):
        emit(Warned(STAGE, notice))
    zx, zy = (ZScores(model, role, device, shared) for role, model in models.items())
    transports = Transports(models, tuple(kinds), options, run, zx, zy, shared, heads)
    work = transports.solved()
    show = Showcase(emit)
    total = sum(len(transports.sources(side)) for _, side in work)
    missing: list[Piece] = []
    with exact_products(), Progress(emit, STAGE, "Match channels and layers", total, "pairs") as progress:
        for l, side in work:
            if not transports.piece(l, side).exists():
                missing.append((l, side))
                continue
            for m, pair in transports.pairs(l, side).items():
                emit(_event(l, m, side, pair))
            progress.skip(len(transports.sources(side)))
        if heads is not None:
            for l in dict.fromkeys(l for l, side in missing if transports.headed(side)):
                for side, pairs in heads.solve(l, transports.sources("q.out"), zx, zy).items():
                    for m, pair in pairs.items():
                        emit(_event(l, m, side, pair))
                    progress.advance(len(pairs), f"heads, layer {l}")
            missing = [(l, side) for l, side in missing if not transports.headed(side)]
        with closing((solver or here)(transports, missing)) as parts:
            for l, side, solutions in _pieces(parts, transports, progress, show):
                tensors = {f"{name}.{m}": getattr(s, name) for m, s in solutions.items() for name in ("f", "g")}
                run.save(transports.piece(l, side), tensors, {"pairs": {m: _scalars(s) for m, s in solutions.items()}})
                show.heatmap(transports, side, l, min(solutions, key=lambda m: solutions[m].cost))
        _warn(transports, emit)
        for kind in transports.kinds:
            layers = transports.layer_plan(kind)
            if not layers.converged:
                message = f"the layer plan of {kind} did not converge in {options.layer_max_iterations} iterations"
                emit(Warned(STAGE, message))
            emit(LayerPlanSolved(kind, layers.P.tolist()))
    return transports


def _pieces(parts: Iterator[Part], transports: Transports, progress: Progress, show: Showcase) -> Iterator[Part]:
    """Reports parts as they come; gives pieces once they have all their source layers, in the layers' order."""
    found: dict[Piece, dict[int, Solution]] = {}
    for l, side, solutions in parts:
        for m, solution in solutions.items():
            show.emit(_event(l, m, side, _scalars(solution)))
            show.convergence(l, m, side, solution)
        progress.advance(len(solutions), f"{side}, layer {l}")
        whole = found.setdefault((l, side), {})
        whole.update(solutions)
        if len(whole) == len(transports.sources(side)):
            yield l, side, dict(sorted(found.pop((l, side)).items()))


def here(transports: Transports, missing: Sequence[Piece]) -> Parts:
    """Solves in this process, on the device of the z-scores."""
    for l, side in missing:
        Zx = transports.zx(l, side)
        for chunk in chunks(transports, side, Zx.shape, Zx.device.type):
            solutions = solve(Zx, [transports.zy(m, side) for m in chunk], transports.options)
            yield l, side, dict(zip(chunk, solutions, strict=True))


def solve(Zx: Tensor, Zys: Sequence[Tensor], options: Transport) -> list[Solution]:
    """Plans of a target layer Zx [T, n] with source layers of one width, Zys [T, n'] each; within `exact_products`."""
    stopping = Stopping(options.max_iterations, options.tolerance, options.stop)
    return SOLVERS[options.solver](CorrelationCosts(Zx, Zys), options.epsilon, stopping)


def chunks(transports: Transports, side: str, shape: Sequence[int], device: str) -> Iterator[list[int]]:
    """Source layers of one width, as many as one call should take beside Zx of `shape`: a second's work on a CPU."""
    layout, (rows, n) = transports.source.layout, shape
    widths: dict[int, list[int]] = {}
    for m in transports.sources(side):
        widths.setdefault(layout.width(m, side) or 0, []).append(m)
    cells = CALL.get(device, CALL["cpu"])
    for width, layers in widths.items():
        size = max(1, min(cells // (n * width), ZSCORES // (4 * rows * width)))
        yield from (layers[i : i + size] for i in range(0, len(layers), size))


def _scalars(solution: Solution) -> dict[str, Any]:
    """All of a solution but its tensors and its history."""
    return {f.name: getattr(solution, f.name) for f in fields(solution) if f.name not in ("f", "g", "violations")}


def _event(l: int, m: int, side: str, pair: dict[str, Any]) -> PairSolved:
    shown = {f.name: pair[f.name] for f in fields(PairSolved) if f.name in pair}
    return PairSolved(l, m, side, **shown)


def _warn(transports: Transports, emit: Emit) -> None:
    """What a person has to know about the plans as a whole: how many are not what was asked for."""
    pairs = [pair for l, side in transports.solved() for pair in transports.pairs(l, side).values()]
    missed = [pair for pair in pairs if not pair["converged"]]
    if missed:
        o = transports.options
        measure = "violation" if o.stop == "relative" else "max_violation"
        worst = max(pair[measure] for pair in missed)
        emit(
            Warned(
                STAGE,
                f"{len(missed)} of {len(pairs)} plans did not converge in {o.max_iterations} iterations "
                f"(worst {o.stop} violation {worst:.1e}, tolerance {o.tolerance:.0e}): "
                "raise max_iterations or epsilon",
            )
        )
    left = sum(pair.get("fell_back", False) for pair in pairs)  # pieces of earlier versions do not say
    if left:
        emit(Warned(STAGE, f"{left} of {len(pairs)} plans left the range of fp32 and were solved in the log domain"))


@contextmanager
def exact_products() -> Iterator[None]:
    """fp32 products in fp32: TF32 would stall the iteration at its own rounding."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
