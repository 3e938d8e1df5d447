"""Plans that move whole heads, keep turned pairs, and share the residual stream. References: permuted activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.optimal_transport.problems import FakeActivations
from tests.engine.pair import make_pair, recipe_of
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.ot_fusion.heads import HeadSpaces
from tmerge_tui.engine.methods.transport_merge import channel_maps
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports, transport
from tmerge_tui.engine.methods.transport_merge.head_plans import SIDES
from tmerge_tui.engine.methods.transport_merge.structure import RESIDUAL
from tmerge_tui.events import Event, PairSolved, StageFinished, Warned
from tmerge_tui.models.layout import Heads, Layout, Projection
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport
from tmerge_tui.run_folder import RunDir

T, HIDDEN = 80, 8
KINDS = ("q", "k", "v", "o")


def attention(
    name: str, heads: Heads, layers: int = 1, kinds: tuple[str, ...] = KINDS, seed: int = 0, feed_forward: bool = False
) -> FakeActivations:
    """Random activations of layers with such heads."""
    n, k = heads.queries * heads.channels, heads.keys * heads.channels
    shapes = {
        "q": (n, HIDDEN),
        "k": (k, HIDDEN),
        "v": (k, HIDDEN),
        "o": (HIDDEN, n),
        "up": (12, HIDDEN),
        "down": (HIDDEN, 12),
    }
    asked = (*kinds, *(("up", "down") if feed_forward else ()))
    projections = tuple(
        Projection(layer, kind, f"{layer}.{kind}", f"{layer}.{kind}.weight", None, *shapes[kind])
        for layer in range(layers)
        for kind in asked
    )
    layout, generator = Layout(layers, projections, (), (), (heads,) * layers), torch.Generator().manual_seed(seed)
    sides = {
        (layer, side): layout.width(layer, side) or 0 for layer in range(layers) for side in layout.sides(layer, asked)
    }
    return FakeActivations(name, layout, {at: torch.randn(T, n, generator=generator) for at, n in sides.items()})


def spaces(model: FakeActivations, turned: Tensor | None = None) -> tuple[HeadSpaces | None, ...]:
    return tuple(None if heads is None else HeadSpaces(heads, turned) for heads in model.layout.heads)


def go(
    path: Path, target: FakeActivations, source: FakeActivations, structure: list[str], turned: Tensor | None = None,
    kinds: tuple[str, ...] = KINDS,
) -> tuple[Transports, list[Event]]:  # fmt: skip
    events: list[Event] = []
    options = Transport.model_validate({"structure": structure, "projections": kinds, "epsilon": 0.02})
    both = Pair(target=target, source=source)
    known = both.each(lambda model: spaces(model, turned))
    found = transport(both, kinds, options, RunDir.create(path / "run"), events.append, attention=known)
    return found, events


def permuted(
    source: FakeActivations, heads: Heads, groups: list[int], within: Tensor
) -> tuple[FakeActivations, dict[str, Tensor]]:
    """A copy with key-value heads in the order `groups`, query heads with them, channels in the order `within`."""
    share, c = heads.queries // heads.keys, heads.channels
    queries = [g * share + i for g in groups for i in range(share)]
    orders = {
        side: (torch.tensor(each)[:, None] * c + within).flatten()
        for side, each in (("q.out", queries), ("o.in", queries), ("k.out", groups), ("v.out", groups))
    }
    moved = {(l, side): Y[:, orders[side]] if side in orders else Y for (l, side), Y in source.tensors.items()}
    return FakeActivations("target", source.layout, moved), orders


def test_permuted_heads_are_recovered_and_nothing_else_is_mixed_in(tmp_path: Path) -> None:
    heads = Heads(queries=6, keys=3, channels=4, rotary=False)
    source = attention("source", heads)
    target, orders = permuted(source, heads, [2, 0, 1], torch.tensor([3, 1, 0, 2]))
    found, events = go(tmp_path, target, source, ["heads"])
    for side, order in orders.items():
        Q = found.plan(side, 0, 0)
        n = len(order)
        expected = torch.zeros(n, n)
        expected[torch.arange(n), order] = 1 / n
        torch.testing.assert_close(Q, expected, rtol=1e-6, atol=1e-9)
        assert float(found.layer_cost(side)[0, 0]) == pytest.approx(0.0, abs=1e-6)
    assert not [event for event in events if isinstance(event, Warned)]
    assert {event.side for event in events if isinstance(event, PairSolved)} >= set(SIDES.values())


def test_a_channel_that_looks_like_another_heads_stays_in_its_head(tmp_path: Path) -> None:
    """Side by side the plan follows the stray channel; whole heads do not."""
    heads = Heads(queries=2, keys=2, channels=4, rotary=False)
    source = attention("source", heads)
    target, _ = permuted(source, heads, [0, 1], torch.arange(4))
    stray = {(0, "q.out"): target.tensors[0, "q.out"][:, [4, 1, 2, 3, 0, 5, 6, 7]]}
    target = FakeActivations("target", target.layout, {**target.tensors, **stray})
    free, _ = go(tmp_path / "free", target, source, [])
    whole, _ = go(tmp_path / "whole", target, source, ["heads"])
    assert int(free.plan("q.out", 0, 0)[0].argmax()) == 4
    Q = whole.plan("q.out", 0, 0)
    assert float(Q[:4, 4:].sum()) == float(Q[4:, :4].sum()) == 0.0 and int(Q[0].argmax()) == 0


def test_groups_stay_together_whatever_the_numbers_of_heads(tmp_path: Path) -> None:
    ours, theirs = Heads(4, 2, 4, False), Heads(6, 3, 6, False)
    found, _ = go(tmp_path, attention("t", ours, 2, seed=1), attention("s", theirs, 3, seed=2), ["heads"])
    for l, m in ((0, 0), (1, 2)):
        Q = {kind: found.plan(side, l, m) for kind, side in SIDES.items()}
        assert Q["q"].shape == (16, 36) and Q["k"].shape == (8, 18)
        for one in Q.values():
            assert float(one.sum()) == pytest.approx(1.0, abs=1e-6)
        of_groups = {}
        for kind, own, other in (("q", 8, 12), ("k", 4, 6), ("v", 4, 6), ("o", 8, 12)):
            of_groups[kind] = Q[kind].view(2, own, 3, other).sum((1, 3))
        for kind in ("k", "v", "o"):
            torch.testing.assert_close(of_groups[kind], of_groups["q"], rtol=1e-5, atol=1e-6)


def test_turned_pairs_keep_their_rank_with_rotary_alone(tmp_path: Path) -> None:
    heads = Heads(queries=2, keys=2, channels=4, rotary=True)
    turned = torch.tensor([[0, 2], [1, 3]])
    source = attention("source", heads)
    swapped = torch.tensor([1, 0, 3, 2])  # the two pairs in the other order: what correlations see
    target, orders = permuted(source, heads, [1, 0], swapped)
    loose, _ = go(tmp_path / "loose", target, source, ["heads"], turned)
    kept, _ = go(tmp_path / "kept", target, source, ["heads", "rotary"], turned)
    assert torch.equal(loose.plan("k.out", 0, 0).argmax(1), orders["k.out"])
    in_place = (torch.tensor([1, 0])[:, None] * 4 + torch.arange(4)).flatten()
    for side in ("q.out", "k.out"):
        assert torch.equal(kept.plan(side, 0, 0).argmax(1), in_place)
    assert torch.equal(kept.plan("v.out", 0, 0).argmax(1), orders["v.out"]), "nothing turns values"
    assert kept.piece(0, "q.out") != loose.piece(0, "q.out")


def test_one_plan_of_the_stream_outvotes_a_side_that_misleads(tmp_path: Path) -> None:
    heads, kinds = Heads(2, 2, 4, False), (*KINDS, "up", "down")
    source = attention("source", heads, feed_forward=True)
    order, wrong = (torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    orders = {**dict.fromkeys(RESIDUAL, order), "o.out": wrong}
    moved = {at: Y[:, orders[at[1]]] if at[1] in orders else Y for at, Y in source.tensors.items()}
    target = FakeActivations("target", source.layout, moved)
    found, _ = go(tmp_path, target, source, ["residual"], kinds=kinds)
    for side in RESIDUAL:
        assert torch.equal(found.plan(side, 0, 0).argmax(1), order)
    assert len({found.piece(0, side) for side in RESIDUAL}) == 1
    free, _ = go(tmp_path / "free", target, source, [], kinds=kinds)
    assert torch.equal(free.plan("o.out", 0, 0).argmax(1), wrong)


def test_the_placebo_permutes_a_space_alike(tmp_path: Path) -> None:
    heads = Heads(4, 2, 4, False)
    found, _ = go(tmp_path, attention("t", heads, seed=1), attention("s", heads, seed=2), ["heads"])
    assert found.order("o.in") == found.order("q.out") and found.order("v.out") == found.order("k.out")
    mixed = channel_maps.channel_map(found, "q.out", 0, 0, "out", "plan", permuted=3)
    assert not torch.equal(mixed, found.plan("q.out", 0, 0))


def test_what_is_solved_is_not_solved_again(tmp_path: Path) -> None:
    models = attention("t", Heads(4, 2, 4, False), 2, seed=1), attention("s", Heads(4, 2, 4, False), 2, seed=2)
    first, _ = go(tmp_path, *models, ["heads", "residual"])
    again, events = go(tmp_path, *models, ["heads", "residual"])
    assert [e.outcome for e in events if isinstance(e, StageFinished)] == ["cached"]
    assert torch.equal(first.plan("q.out", 1, 0), again.plan("q.out", 1, 0)) and first.key == again.key


@pytest.mark.parametrize("kinds", [("q", "k"), ("q", "k", "v")])
def test_heads_that_are_not_whole_are_said(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    models = (attention(name, Heads(2, 2, 4, False), kinds=kinds, seed=seed) for seed, name in enumerate("ts"))
    found, events = go(tmp_path, *models, ["heads"], kinds=kinds)  # type: ignore[call-arg]
    (said,) = [event.message for event in events if isinstance(event, Warned)]
    assert "heads does not apply" in said and "only q, k" in said
    assert found.heads is None and found.plan("q.out", 0, 0).shape == (8, 8)


def test_rotary_needs_heads() -> None:
    with pytest.raises(ValueError, match="add heads"):
        Transport.model_validate({"structure": ["rotary"]})


def test_a_whole_run_with_every_structure(tmp_path: Path) -> None:
    mapping: dict[str, Any] = make_pair(tmp_path)
    recipe = recipe_of(mapping, transport={"structure": ["heads", "rotary", "neurons", "residual"]})
    run = RunDir.create(recipe.output)
    seen: list[Event] = []
    pipeline.run(recipe, run, seen.append)
    assert not [e for e in seen if isinstance(e, Warned) and "does not apply" in e.message]
    assert (run.model / "model.safetensors").is_file() and list(run.state.glob("transport-heads-*"))
    text = (run.path / "report.md").read_text("utf-8")
    assert "q.out" in text and "exact" in text
