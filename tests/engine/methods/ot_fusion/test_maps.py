"""Plans, maps, heads and tokens by themselves. References: POT, hand-written products, and answers that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ot
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.engine.methods.ot_fusion.copies import shuffled
from tests.engine.methods.ot_fusion.test_known_answers import IDS, logits, merged
from tests.engine.pair import make_pair, recipe_of
from tests.families import make_family
from tests.tiny import make_tokenizer
from tmerge_tui.engine.methods.ot_fusion import coupling, depth
from tmerge_tui.engine.methods.ot_fusion.channel_map import ChannelMap
from tmerge_tui.engine.methods.ot_fusion.coupling import couple, in_order, marginal
from tmerge_tui.engine.methods.ot_fusion.heads import KINDS, HeadMaps, HeadSpaces, head_maps
from tmerge_tui.engine.methods.ot_fusion.tokens import shared_tokens
from tmerge_tui.engine.preflight.check import check
from tmerge_tui.engine.training.residual import attach
from tmerge_tui.engine.weights.export import export
from tmerge_tui.errors import ModelError, NumericsError
from tmerge_tui.models.layout import Heads
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import OtFusion
from tmerge_tui.run_folder import RunDir


def costs(n: int, m: int, seed: int = 0) -> Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- plans and maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["exact", "sinkhorn", "hard"])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_plans_have_their_marginals(solver: str, shape: tuple[int, int]) -> None:
    found = couple(costs(*shape), OtFusion(solver=solver))
    T = found.T
    assert T.shape == shape and abs(float(T.sum()) - 1) < 1e-6 and bool((T >= 0).all())
    assert found.cost == pytest.approx(float((costs(*shape) * T).sum()), abs=1e-5)
    if solver == "hard":
        assert int((T > 0).sum()) == min(shape)
        assert int((T > 0).sum(0).max()) == int((T > 0).sum(1).max()) == 1
    else:
        for dim in (0, 1):
            torch.testing.assert_close(T.sum(1 - dim), coupling.uniform(shape[dim]), rtol=0, atol=1e-6)


def test_exact_plans_are_pots_and_no_worse_than_any() -> None:
    C = costs(7, 5)
    a, b = marginal(torch.arange(1.0, 8)), marginal(torch.arange(5.0, 0, -1))
    assert a is not None and b is not None
    found = couple(C, OtFusion(), a, b)
    torch.testing.assert_close(found.T, torch.from_numpy(ot.emd(a.numpy(), b.numpy(), C.numpy())))
    assert found.cost <= couple(C, OtFusion(solver="sinkhorn", epsilon=0.01), a, b).cost + 1e-6


def test_a_plan_that_is_not_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling, "STEPS", 1)
    with pytest.raises(NumericsError, match="no exact plan of 30 x 40"):
        couple(costs(30, 40), OtFusion())


def test_costs_have_to_be_finite() -> None:
    with pytest.raises(NumericsError, match="NaN or Inf"):
        couple(costs(3, 3).fill_(float("nan")), OtFusion(solver="hard"))


def test_a_channel_without_strength_keeps_some_mass() -> None:
    mass = marginal(torch.tensor([0.0, 1.0, 3.0]))
    assert mass is not None and float(mass.min()) > 0 and float(mass.sum()) == pytest.approx(1)
    torch.testing.assert_close(marginal(torch.zeros(4)), coupling.uniform(4))


@pytest.mark.parametrize("dense", [True, False])
def test_maps_are_averages_of_both_kinds(dense: bool) -> None:
    n, m = 12, 30
    T = costs(n, m) if dense else in_order(n, m)
    made, W = ChannelMap(T), torch.randn(m, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.write(W), ((T / T.sum(1, keepdim=True)).float() @ W))
    torch.testing.assert_close(made.write(W[:, 0]), made.write(W)[:, 0])
    torch.testing.assert_close(made.read(W.T), W.T @ (T / T.sum(0)).float().T)
    assert made._writes.is_sparse == (not dense)


def test_twins_write_the_same_and_share_what_is_read() -> None:
    """W2 relu(W1 x), and the same with every hidden channel split in two: one map takes either into the other."""
    generator = torch.Generator().manual_seed(0)
    W1, W2, x = (torch.randn(*shape, generator=generator) for shape in ((6, 4), (3, 6), (4, 7)))
    order = shuffled(12, 0)
    wide1, wide2 = W1.repeat_interleave(2, 0)[order], (W2.repeat_interleave(2, 1) / 2)[:, order]
    C = torch.cdist(W1.double(), wide1.double())
    narrow, wide = ChannelMap(couple(C, OtFusion()).T), ChannelMap(couple(C.T.contiguous(), OtFusion()).T)
    torch.testing.assert_close(narrow.write(wide1), W1)
    torch.testing.assert_close(narrow.read(wide2), W2)
    torch.testing.assert_close(wide.read(W2) @ (wide.write(W1) @ x).relu(), W2 @ (W1 @ x).relu())


def test_order_is_kept_in_order() -> None:
    torch.testing.assert_close(in_order(4, 4), torch.eye(4, dtype=torch.float64) / 4)
    expected = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64) / 4
    torch.testing.assert_close(in_order(2, 4), expected)
    torch.testing.assert_close(in_order(3, 2).sum(0), torch.full((2,), 0.5, dtype=torch.float64))


# -- heads -------------------------------------------------------------------------------------------------------------


def halves(channels: int) -> Tensor:
    return torch.arange(channels).view(2, -1).T


def spaces(
    queries: int, keys: int, channels: int = 4, turned: Tensor | None = None, sloped: bool = False
) -> HeadSpaces:
    return HeadSpaces(Heads(queries, keys, channels, turned is not None), turned, sloped)


def matched(ours: HeadSpaces, theirs: HeadSpaces, seed: int = 0, **options: Any) -> HeadMaps:
    def shape(kind: str, of: HeadSpaces) -> int:
        return (of.heads.queries if kind in ("q", "o") else of.heads.keys) * of.heads.channels

    given = {kind: costs(shape(kind, ours), shape(kind, theirs), seed + i) for i, kind in enumerate(KINDS)}
    return head_maps(given, Pair(target=ours, source=theirs), OtFusion(**options))


def by_head(made: ChannelMap, channels: int, source_channels: int) -> Tensor:
    T = made.T
    return T.view(T.shape[0] // channels, channels, T.shape[1] // source_channels, source_channels).sum((1, 3))


@pytest.mark.parametrize("solver", ["exact", "sinkhorn", "hard"])
@pytest.mark.parametrize(("ours", "theirs"), [((4, 2), (4, 2)), ((4, 4), (8, 2)), ((6, 2), (4, 1)), ((4, 1), (4, 4))])
def test_groups_of_heads_stay_together(ours: tuple[int, int], theirs: tuple[int, int], solver: str) -> None:
    """k and v follow the groups that q and o follow, whatever the numbers of heads; no mass goes elsewhere."""
    found = matched(spaces(*ours), spaces(*theirs), solver=solver)
    A, G = by_head(found.q, 4, 4), by_head(found.k, 4, 4)
    torch.testing.assert_close(A, by_head(found.o, 4, 4))
    torch.testing.assert_close(G, by_head(found.v, 4, 4))
    summed = A.view(ours[1], ours[0] // ours[1], theirs[1], theirs[0] // theirs[1]).sum((1, 3))
    torch.testing.assert_close(summed, G)
    if ours == theirs:
        assert int((A > 0).sum()) == ours[0] and int((G > 0).sum()) == ours[1], "whole heads, whole groups"


def test_query_heads_of_more_groups_take_a_head_each() -> None:
    """Eight heads of two groups become four of their own keys: none is a mean of a whole group."""
    found = matched(spaces(8, 8), spaces(8, 2))
    assert int((by_head(found.q, 4, 4) > 0).sum()) == 8
    assert int((by_head(found.k, 4, 4) > 0).sum()) == 8


def test_turned_pairs_keep_their_rank_and_their_places() -> None:
    found = matched(spaces(2, 2, 8, halves(8)), spaces(2, 2, 8, torch.arange(8).view(-1, 2)))
    block = found.head.T / found.head.T.sum()
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[halves(8), torch.arange(8).view(-1, 2)] = 1 / 8
    torch.testing.assert_close(block, expected)
    wider = matched(spaces(2, 2, 4, halves(4)), spaces(2, 2, 8, halves(8))).head.T
    assert [row.nonzero().flatten().tolist() for row in wider] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_channels_that_are_not_turned_are_matched_among_themselves() -> None:
    partly = torch.tensor([[0, 1]])
    T = matched(spaces(2, 2, 4, partly), spaces(2, 2, 6, torch.tensor([[0, 2], [1, 3]]))).head.T
    assert T[:2, 4:].sum() == 0 and T[2:, :4].sum() == 0 and T[0, 2] == T[1, 0] == 0
    assert bool((T.sum(1) > 0).all())
    whole = matched(spaces(2, 2, 4, partly), spaces(2, 2, 4, halves(4))).head
    assert whole.covered.tolist() == [True, True, False, False], "what only the target leaves unturned stays as it is"


def test_slopes_keep_the_order_of_heads() -> None:
    found = matched(spaces(4, 4, sloped=True), spaces(4, 4, sloped=True))
    assert found.pairs == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert matched(spaces(4, 4, sloped=True), spaces(4, 4)).pairs != found.pairs


# -- layers ------------------------------------------------------------------------------------------------------------


def test_the_nearest_depth() -> None:
    assert depth.nearest(3, 5).argmax(1).tolist() == [0, 2, 4]
    assert depth.nearest(5, 2).argmax(1).tolist() == [0, 0, 0, 1, 1]
    assert depth.nearest(1, 4).argmax(1).tolist() == [0]


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_that_both_have() -> None:
    ours, theirs = make_tokenizer(300), make_tokenizer(400)
    found = shared_tokens(Pair(target=ours, source=theirs), Pair(target=300, source=400))
    rows, others = ours.get_vocab(), theirs.get_vocab()
    assert {(rows[token], others[token]) for token in rows if token in others} == set(map(tuple, found.tolist()))
    assert found[:, 0].tolist() == sorted(found[:, 0].tolist()) and 0 in found[:, 0], "the special one too"


def test_rows_of_one_tokenizer_need_no_token() -> None:
    both = make_tokenizer(300)
    found = shared_tokens(Pair(target=both, source=both), Pair(target=320, source=310))
    assert found.tolist() == [[row, row] for row in range(310)]


def test_rows_that_only_the_target_has_stay(tmp_path: Path) -> None:
    target = make_family(tmp_path / "target", "llama", vocab=400)
    source = make_family(tmp_path / "source", "llama", vocab=300, seed=1)
    prepared, merge = merged(tmp_path, target, source)
    name = "model.embed_tokens.weight"
    stored = prepared.target.checkpoint.read(name)
    made = merge.at(0.5, None).change(name, stored).applied(stored)
    moved = (made != stored).any(1)
    shared = shared_tokens(
        Pair(target=prepared.target.tokenizer, source=prepared.source.tokenizer), Pair(target=400, source=300)
    )
    rows = shared[1:, 0].tolist()  # without that of the padding token, which is zero in both
    assert moved.nonzero().flatten().tolist() == rows and not moved.all()
    assert any("rows of the embeddings" in note for note in merge.notes)


def test_weights_need_tokens_to_compare_streams_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = torch.empty(0, 2, dtype=torch.int64)
    monkeypatch.setattr("tmerge_tui.engine.methods.ot_fusion.stage.shared_tokens", lambda *given: none)
    with pytest.raises(ModelError, match="no token that both models have"):
        merged(
            tmp_path, *(make_family(tmp_path / name, "llama", seed=len(name)) for name in ("a", "bb")), cost="weights"
        )


# -- any two families --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("gpt2", "llama"),
        ("llama", "gemma2"),
        ("gpt_neox", "phi3"),
        ("qwen3", "gpt2"),
        ("falcon_7b", "qwen2"),
        ("olmo2", "opt"),
    ],
)
@pytest.mark.parametrize("cost", ["activations", "weights"])
def test_strangers_of_any_width_and_depth(target: str, source: str, cost: str, tmp_path: Path) -> None:
    """Everything is finite, every projection that both have has moved."""
    ours = make_family(tmp_path / "ours", target)
    wide = {} if source in ("gpt2", "opt") else {"hidden": 48, "intermediate": 64}
    theirs = make_family(tmp_path / "theirs", source, layers=3, seed=5, **wide)
    prepared, merge = merged(tmp_path, ours, theirs, cost=cost)
    update = merge.at(0.5, None)
    layouts = prepared.models.each(lambda party: party.facts.layout)
    carried = {kind for layer in range(3) for kind in layouts.source.kinds(layer)}
    assert all((p.weight in update.names) == (p.kind in carried) for p in layouts.target.projections if p.block is None)
    for p in (p for p in layouts.target.projections if p.kind in carried):
        stored = prepared.target.checkpoint.read(p.weight)
        made = update.change(p.weight, stored).applied(stored)
        assert bool(made.isfinite().all())
        assert not torch.equal(p.take(made), p.take(stored)), p


def test_norms_of_other_conventions_are_carried_as_scales(tmp_path: Path) -> None:
    """A Gemma keeps scale - 1: a source whose scales are all 1 makes the target's 1."""
    target, source = make_family(tmp_path / "t", "llama"), make_family(tmp_path / "s", "gemma", seed=1)
    prepared, merge = merged(tmp_path, target, source)
    stored = prepared.target.checkpoint.read("model.norm.weight")
    torch.testing.assert_close(merge.at(1.0, None).change("model.norm.weight", stored).values, torch.ones_like(stored))
    back, merge = merged(tmp_path / "back", source, target)
    stored = back.target.checkpoint.read("model.norm.weight")
    torch.testing.assert_close(merge.at(1.0, None).change("model.norm.weight", stored).values, torch.zeros_like(stored))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fusion": {"layers": [0]}}, "fusion.layers: found with method: ot_fusion"),
        ({"fusion": {"projections": ["q"]}}, "fusion.projections: found"),
        ({"fusion": {"norm": "keep"}}, "fusion.norm: keep: found"),
        ({"adaptation": {"hints": {}}}, "adaptation.hints: found"),
        ({"adaptation": {"method": "lora"}}, "adaptation.method: lora: found"),
    ],
)
def test_what_it_does_not_do_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    recipe = recipe_of(make_pair(tmp_path), method="ot_fusion", **changes)
    assert any(problem.startswith(said) for problem in check(recipe))


@pytest.mark.parametrize("tied", [True, False])
def test_training_starts_at_the_merged_model(tied: bool, tmp_path: Path) -> None:
    """The frozen residual on every tensor, tied ones included. Reference: the same update written and loaded."""
    target = make_family(tmp_path / "target", "llama", tie_word_embeddings=tied)
    source = make_family(tmp_path / "source", "llama", hidden=48, seed=1)
    _, merge = merged(tmp_path, target, source)
    update, run = merge.at(0.5, None), RunDir.create(tmp_path / "out")
    export(update, 0.5, run.model, run, lambda event: None)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    assert len(attach(model, update)) == len(update.names)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, use_cache=False).logits, logits(run.model), rtol=1e-4, atol=1e-5)
