"""The stage over activations in memory; plans are compared with a textbook loop in fp64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.optimal_transport.problems import FakeActivations, exact_plan, make_activations
from tmerge_tui.engine.methods.transport_merge import feature_plans as stage
from tmerge_tui.engine.methods.transport_merge import showcase
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports, transport
from tmerge_tui.errors import NumericsError
from tmerge_tui.events import (
    Convergence,
    Event,
    HeatMap,
    LayerPlanSolved,
    PairSolved,
    StageFinished,
    StageProgressed,
    Warned,
)
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport
from tmerge_tui.run_folder import RunDir

ALL = ("q", "k", "v", "o")
SIX = ("qkv.in", "q.out", "k.out", "v.out", "o.in", "o.out")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run")


@pytest.fixture
def target() -> FakeActivations:
    return make_activations("target", [ALL] * 2, hidden=10, inner=12, seed=1)


@pytest.fixture
def source() -> FakeActivations:
    return make_activations("source", [ALL] * 3, hidden=18, inner=20, seed=2)


def go(
    target: FakeActivations, source: FakeActivations, run: RunDir, kinds: tuple[str, ...] = ALL, **options: object
) -> tuple[Transports, list[Event]]:
    events: list[Event] = []
    return transport(Pair(target=target, source=source), kinds, Transport(**options), run, events.append), events


def only(events: list[Event], kind: type[Event]) -> list:
    return [e for e in events if isinstance(e, kind)]


@pytest.mark.parametrize("solver", ["fast", "plain", "pot"])
def test_every_pair_is_solved(target: FakeActivations, source: FakeActivations, run: RunDir, solver: str) -> None:
    transports, events = go(target, source, run, solver=solver)
    solved = only(events, PairSolved)
    assert sorted((p.side, p.l, p.m) for p in solved) == sorted(
        (side, l, m) for side in SIX for l in (0, 1) for m in (0, 1, 2)
    )
    for p in solved:
        result = transports.result(p.side, p.l, p.m)
        Zx, Zy = transports.zx(p.l, p.side), transports.zy(p.m, p.side)
        expected = exact_plan(Zx, Zy, 0.1)
        assert float((result.plan(Zx, Zy) - expected).abs().max() / expected.max()) < 1e-5
        cost = float(((1 - Zx.double().T @ Zy.double()) * expected).sum())
        assert p.converged
        assert p.solver == solver
        assert abs(p.cost - cost) < 1e-6
        assert float(transports.layer_cost(p.side)[p.l, p.m]) == p.cost


def test_layer_plans_cover_every_source_layer(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    transports, events = go(target, source, run)
    assert [e.projection for e in only(events, LayerPlanSolved)] == list(ALL)
    plan = transports.layer_plan("q")
    assert plan.P_in.shape == (2, 3)  # the source is deeper, and its last layer takes part
    torch.testing.assert_close(plan.P_in.sum(0), torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(plan.P_out.sum(1), torch.full((2,), 1 / 2, dtype=torch.float64))
    assert plan.P.tolist() == only(events, LayerPlanSolved)[0].P


def test_progress_counts_pairs(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    _, events = go(target, source, run)
    last = only(events, StageProgressed)[-1]
    assert (last.done, last.total, last.unit) == (36, 36, "pairs")
    assert only(events, StageFinished)[0].outcome == "done"


def test_finished_pieces_are_read(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    first, _ = go(target, source, run)
    before = {p: p.stat().st_mtime_ns for p in run.state.iterdir()}
    assert len(before) == 12  # one for each target layer and side
    lost = first.piece(1, "k.out")
    expected = first.result("k.out", 1, 2)
    lost.unlink()
    target.reads.clear()
    second, events = go(target, source, run)
    assert {p for p in run.state.iterdir() if p.stat().st_mtime_ns != before[p]} == {lost}
    assert set(target.reads) == {(1, "k.out")}
    again = second.result("k.out", 1, 2)
    assert torch.equal(again.solution.f, expected.solution.f)
    assert torch.equal(again.solution.g, expected.solution.g)
    assert len(only(events, PairSolved)) == 36
    third, events = go(target, source, run)
    assert only(events, StageFinished)[0].outcome == "cached"
    assert third.key == first.key


def test_a_piece_that_does_not_say_whether_its_kernel_left_fp32_is_taken_up(
    target: FakeActivations, source: FakeActivations, run: RunDir
) -> None:
    """As earlier versions wrote them."""
    transports, _ = go(target, source, run, ("q",))
    expected = transports.result("q.out", 1, 2)
    for l, side in transports.solved():
        tensors, meta = run.load(transports.piece(l, side))
        for pair in meta["pairs"].values():
            del pair["fell_back"]
        run.save(transports.piece(l, side), tensors, meta)
    again, events = go(target, source, run, ("q",))
    assert only(events, StageFinished)[0].outcome == "cached"
    assert replace(again.result("q.out", 1, 2).solution, f=None, g=None) == replace(
        expected.solution, f=None, g=None, violations=()
    )


def test_what_a_piece_depends_on(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    transports, _ = go(target, source, run, ("q",))
    pieces = set(run.state.iterdir())
    go(target, source, run, ALL)  # more projections: nothing is done twice
    assert pieces < set(run.state.iterdir())
    assert len(list(run.state.iterdir())) == 12
    piece = transports.piece(0, "q.out")
    for change in (
        {"epsilon": 0.2},
        {"tolerance": 1e-5},
        {"stop": "absolute"},
        {"solver": "pot"},
        {"max_iterations": 9},
    ):
        assert replace(transports, options=Transport(**change)).piece(0, "q.out") != piece
        assert replace(transports, options=Transport(**change)).key != transports.key
    for keep in ({"eta": 0.5}, {"layer_cost": "median"}, {"top_layers": 1}, {"projections": ("k",)}):
        assert replace(transports, options=Transport(**keep)).piece(0, "q.out") == piece
    other = replace(source, key="another")
    assert replace(transports, models=replace(transports.models, source=other)).piece(0, "q.out") != piece


def test_layers_that_lack_a_projection(run: RunDir) -> None:
    target = make_activations("target", [ALL, ("o",), ALL], hidden=10, inner=12, seed=1)
    source = make_activations("source", [("q", "o"), ALL], hidden=18, inner=20, seed=2)
    transports, events = go(target, source, run)
    assert (1, 0, "q.out") not in {(p.l, p.m, p.side) for p in only(events, PairSolved)}
    C = transports.layer_cost("k.out")
    assert C.isnan().tolist() == [[True, False], [True, True], [True, False]]
    P = transports.layer_plan("k").P
    torch.testing.assert_close(P, torch.tensor([[0, 0.5], [0, 0], [0, 0.5]], dtype=torch.float64))
    with pytest.raises(KeyError):
        transports.result("k.out", 0, 0)
    assert all(math.isfinite(x) for e in only(events, LayerPlanSolved) for row in e.P for x in row)


def test_source_layers_of_different_widths(run: RunDir, target: FakeActivations) -> None:
    wide = make_activations("source", [ALL] * 2, hidden=18, inner=20, seed=2)
    narrow = make_activations("source", [ALL] * 2, hidden=18, inner=8, seed=2)
    projections = wide.layout.projections[:4] + narrow.layout.projections[4:]
    mixed = FakeActivations(
        "mixed",
        replace(wide.layout, projections=projections),
        {at: (wide if at[0] == 0 else narrow).tensors[at] for at in wide.tensors},
    )
    transports, _ = go(target, mixed, run)
    assert transports.result("q.out", 0, 0).solution.g.shape == (20,)
    assert transports.result("q.out", 0, 1).solution.g.shape == (8,)


def test_non_convergence_is_a_warning(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    _, events = go(target, source, run, max_iterations=2, epsilon=0.03)
    pairs = only(events, PairSolved)
    missed = [p for p in pairs if not p.converged]
    assert missed
    (warning,) = only(events, Warned)
    assert f"{len(missed)} of {len(pairs)} plans did not converge" in warning.message
    assert f"{max(p.violation for p in missed):.1e}" in warning.message


def test_fallback_to_the_log_domain_is_a_warning(run: RunDir) -> None:
    target = make_activations("target", [("q",)], hidden=6, inner=7, seed=1)
    shared = torch.tensor([1.0, -1.0])[:, None]
    signs = torch.tensor([1.0, -1.0, 1, 1, -1, -1, 1])
    target.tensors = {at: shared * signs[: X.shape[1]] for at, X in target.tensors.items()}
    source = make_activations("source", [("q",)], hidden=1, inner=1, seed=1)
    source.tensors = {at: shared for at in source.tensors}
    _, events = go(target, source, run, ("q",), epsilon=0.025)
    solvers = [p.solver for p in only(events, PairSolved)]
    assert 0 < solvers.count("fast-log") <= len(solvers)
    (warning,) = only(events, Warned)
    assert f"{solvers.count('fast-log')} of {len(solvers)} plans" in warning.message
    assert "log domain" in warning.message


def test_bad_activations_are_named(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    source.tensors[2, "v.out"][5, 7] = torch.nan
    with pytest.raises(NumericsError, match=r"source model, layer 2, v\.out"):
        go(target, source, run)
    _, events = go(target, replace(source, tensors=make_activations("s", [ALL] * 3, 18, 20, seed=2).tensors), run)
    assert only(events, StageFinished)[0].outcome == "done"  # what was solved before the error is kept


def test_zscores_are_kept_within_bounds(
    target: FakeActivations, source: FakeActivations, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(target, source, run)
    assert len(source.reads) == len(set(source.reads)) == 18  # each side of each layer once
    monkeypatch.setattr(stage, "ZSCORES", 2 * 40 * 20 * 4)
    transports, _ = go(target, source, run)
    for m in (0, 1, 2):
        transports.zy(m, "q.out")
    assert sum(z.nbytes for z in transports.zy.kept.values()) <= stage.ZSCORES  # type: ignore[attr-defined]


def test_pictures_are_rare(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    _, events = go(target, source, run)
    seconds = only(events, StageFinished)[0].seconds
    assert 1 <= len(only(events, HeatMap)) <= 1 + seconds / showcase.EVERY
    assert 1 <= len(only(events, Convergence)) <= 1 + seconds / showcase.EVERY
    curve = only(events, Convergence)[0]
    pair = next(p for p in only(events, PairSolved) if (p.l, p.m, p.side) == (curve.l, curve.m, curve.side))
    assert len(curve.violations) == pair.iterations


def test_heat_map_shows_the_match(run: RunDir) -> None:
    target = make_activations("target", [("q",)], hidden=100, inner=100, rows=300, seed=1)
    generator = torch.Generator().manual_seed(3)
    target.tensors = {at: torch.randn(300, 100, generator=generator) for at in target.tensors}
    reversed_ = {at: X.flip(1) for at, X in target.tensors.items()}
    transports, _ = go(target, replace(target, key="source", tensors=reversed_), run, ("q",), epsilon=0.03)
    tile = transports.heatmap("q.out", 0, 0)
    assert (tile.rows, tile.cols) == (64, 64)
    cells = torch.frombuffer(bytearray(tile.cells()), dtype=torch.uint8).view(64, 64)
    assert (cells.flip(1).diagonal() > 250).all()
    assert cells.double().mean() < 150
    assert tile.hi == pytest.approx(2, abs=0.05)  # one of 100 sources has nearly all of a row: 10^2 times uniform
    small = go(target, target, run, ("q",))[0].heatmap("qkv.in", 0, 0)
    assert len(small.cells()) == small.rows * small.cols


def test_mass_grows_to_one(target: FakeActivations, source: FakeActivations, run: RunDir) -> None:
    transports, _ = go(target, source, run)
    mass = transports.mass("q.out", 1, 2)
    assert mass.entries == (1, 2, 4, 8, 16, 20)
    assert mass.share[-1] == pytest.approx(1)
    assert all(a < b for a, b in zip(mass.share, mass.share[1:], strict=False))
    Q = transports.plan("q.out", 1, 2)
    assert mass.share[0] == pytest.approx(float((Q.amax(1) / Q.sum(1)).mean()), rel=1e-5)
