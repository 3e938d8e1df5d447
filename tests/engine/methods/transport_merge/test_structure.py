"""Sides under one plan. Reference: a copy of a model's activations whose neurons were permuted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.optimal_transport.problems import FakeActivations
from tmerge_tui.engine.methods.transport_merge import channel_maps
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports, transport
from tmerge_tui.engine.methods.transport_merge.structure import NEURONS
from tmerge_tui.errors import RecipeError
from tmerge_tui.events import Event, PairSolved, Warned
from tmerge_tui.models.layout import Layout, Projection
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport, make_recipe
from tmerge_tui.run_folder import RunDir

T, HIDDEN = 60, 6
KINDS = ("gate", "up", "down")


def feed_forwards(name: str, widths: list[int], kinds: tuple[str, ...] = KINDS, seed: int = 0) -> FakeActivations:
    """Random activations of layers with a feed-forward of these widths."""
    shapes = [{"gate": (n, HIDDEN), "up": (n, HIDDEN), "down": (HIDDEN, n)} for n in widths]
    projections = tuple(
        Projection(layer, kind, f"{layer}.{kind}", f"{layer}.{kind}.weight", None, *shapes[layer][kind])
        for layer in range(len(widths))
        for kind in kinds
    )
    layout, generator = Layout(len(widths), projections, ()), torch.Generator().manual_seed(seed)
    sides = {
        (layer, side): layout.width(layer, side) or 0
        for layer in range(len(widths))
        for side in layout.sides(layer, kinds)
    }
    return FakeActivations(name, layout, {at: torch.randn(T, n, generator=generator) for at, n in sides.items()})


def go(
    path: Path, target: FakeActivations, source: FakeActivations, kinds: tuple[str, ...] = KINDS, **options: object
) -> tuple[Transports, list[Event]]:
    events: list[Event] = []
    run = RunDir.create(path / "run")
    asked = Transport.model_validate({"structure": "neurons", "projections": kinds, **options})
    return transport(Pair(target=target, source=source), kinds, asked, run, events.append), events


def test_a_permuted_copy_is_recovered_by_one_plan_where_single_sides_mislead(tmp_path: Path) -> None:
    """up alone points at wrong neurons; gate and down outvote it."""
    source = feed_forwards("source", [10])
    order, wrong = (torch.randperm(10, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    orders = {"gate.out": order, "up.out": wrong, "down.in": order}
    moved = {at: Y[:, orders[at[1]]] if at[1] in orders else Y for at, Y in source.tensors.items()}
    target = FakeActivations("target", source.layout, moved)
    transports, events = go(tmp_path, target, source, epsilon=0.02)
    for side in NEURONS:
        assert torch.equal(transports.plan(side, 0, 0).argmax(1), order)
        assert torch.equal(transports.plan(side, 0, 0), transports.plan("gate.out", 0, 0))
    assert sum(isinstance(event, PairSolved) and event.side in NEURONS for event in events) == 1
    assert not [event for event in events if isinstance(event, Warned)]
    free, _ = go(tmp_path / "free", target, source, epsilon=0.02, structure="none")
    assert torch.equal(free.plan("up.out", 0, 0).argmax(1), wrong)


def test_the_cost_is_the_mean_of_its_sides(tmp_path: Path) -> None:
    """Other widths and depths; reference: correlations by torch.corrcoef."""
    target, source = feed_forwards("target", [8, 8], seed=1), feed_forwards("source", [10, 12, 10], seed=2)
    transports, _ = go(tmp_path, target, source)
    for l, m in ((0, 0), (1, 1)):
        both = [torch.corrcoef(torch.cat([target.tensors[l, s], source.tensors[m, s]], 1).T) for s in NEURONS]
        C = 1 - torch.stack([rho[:8, 8:] for rho in both]).mean(0)
        Q = transports.plan("up.out", l, m)
        assert Q.shape == C.shape
        for side in NEURONS:
            assert float(transports.layer_cost(side)[l, m]) == pytest.approx(float((C * Q).sum()), abs=1e-5)


def test_the_placebo_permutes_all_sides_alike(tmp_path: Path) -> None:
    transports, _ = go(tmp_path, feed_forwards("target", [8]), feed_forwards("source", [10], seed=2))
    maps = [channel_maps.channel_map(transports, side, 0, 0, "out", "plan", permuted=5) for side in NEURONS]
    assert all(torch.equal(found, maps[0]) for found in maps)
    assert not torch.equal(maps[0], transports.plan("up.out", 0, 0))


def test_other_sides_keep_their_pieces(tmp_path: Path) -> None:
    """What is matched on its own is not solved anew when neurons are asked for."""
    models = feed_forwards("target", [8]), feed_forwards("source", [10], seed=2)
    (free, _), (structured, _) = (go(tmp_path / how, *models, structure=how) for how in ("none", "neurons"))
    assert free.piece(0, "mlp.in").name == structured.piece(0, "mlp.in").name
    assert free.piece(0, "gate.out").name != structured.piece(0, "gate.out").name
    assert structured.piece(0, "gate.out") == structured.piece(0, "down.in")
    assert free.key != structured.key


@pytest.mark.parametrize(
    "kinds, shared, said",
    [(("up", "down"), ("up.out", "down.in"), "without gate.out"), (("down",), (), "does not apply")],
)
def test_what_is_not_there_is_said(tmp_path: Path, kinds: tuple[str, ...], shared: tuple[str, ...], said: str) -> None:
    models = feed_forwards("target", [8], kinds), feed_forwards("source", [10], kinds, seed=2)
    transports, events = go(tmp_path, *models, kinds=kinds)
    assert transports.shared == ((shared,) if shared else ())
    assert [event.message for event in events if isinstance(event, Warned) and said in event.message]


def test_an_unknown_structure_is_refused() -> None:
    recipe = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": "run"}
    with pytest.raises(RecipeError, match="structure"):
        make_recipe({**recipe, "transport": {"structure": "limbs"}})
