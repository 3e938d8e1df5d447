"""Fusion against the dense product written out with whole matrices, and `apply` against eqs. 14 and 22."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.methods.transport_merge.plans import Pair, Recorded, identity_plan, noisy_biases, random_plan
from tests.tiny import make_model
from tmerge_tui.engine.methods.transport_merge import channel_maps
from tmerge_tui.engine.methods.transport_merge.feature_plans import transport
from tmerge_tui.engine.methods.transport_merge.fuse import check_k, strongest
from tmerge_tui.engine.methods.transport_merge.fusion import FusedProjection, Fusion, apply
from tmerge_tui.errors import CheckError, NumericsError, StorageError
from tmerge_tui.events import StageFinished, Warned
from tmerge_tui.models.checkpoint import Checkpoint, patch_checkpoint
from tmerge_tui.models.layout import side_of
from tmerge_tui.models.pair import Pair as Both
from tmerge_tui.recipe import PROJECTIONS, Transport

P = torch.tensor([[0.3, 0.0, 0.2], [0.1, 0.4, 0.0]])  # L = 2, M = 3


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A Qwen2 target with biases and a deeper, wider Qwen2 source, both with grouped queries."""
    target = make_model(tmp_path / "target", "qwen2", layers=2)
    source = make_model(tmp_path / "source", "qwen2", layers=3, hidden=48, heads=6, intermediate=64, seed=1)
    for folder in (target, source):
        noisy_biases(folder)
    return Pair.make(tmp_path, target, source, P)


def dense(pair: Pair, kind: str, layer: int, coupling: str, r: int | None) -> tuple[Tensor, Tensor]:
    """Eq. 14 with whole matrices in float64: (weights [d_out, d_in], bias [d_out] through Phi_out)."""
    ours = pair.layouts.target.get(layer, kind)
    assert ours is not None
    W, b = torch.zeros(ours.d_out, ours.d_in, dtype=torch.float64), torch.zeros(ours.d_out, dtype=torch.float64)
    for m in range(3):
        theirs = pair.layouts.source.get(m, kind)
        assert theirs is not None
        Q_out, Q_in = (
            channel_maps.sparsify(random_plan(side_of(kind, end), layer, m, n, n_source), r).double()
            for end, n, n_source in (("out", ours.d_out, theirs.d_out), ("in", ours.d_in, theirs.d_in))
        )
        p = P[layer, m].double() * 2
        if coupling == "barycentric":
            p = P[layer, m].double() / P[layer].double().sum()
            Q_out = Q_out / Q_out.sum(1, keepdim=True)
            Q_in = Q_in / Q_in.sum(0)
        W += p * Q_out.nan_to_num() @ pair.source.read(theirs.weight).double() @ Q_in.nan_to_num().T
        if theirs.bias is not None:
            b += p * Q_out.nan_to_num() @ pair.source.read(theirs.bias).double()
    return W, b


@pytest.mark.parametrize("coupling", ["plan", "barycentric"])
@pytest.mark.parametrize("r", [None, 6])
def test_moved_is_the_dense_product_on_the_strongest_neurons(pair: Pair, coupling: str, r: int | None) -> None:
    fusion = pair.fuse(PROJECTIONS, coupling=coupling, r=r)
    assert fusion.layers() == (0, 1)
    for fused in fusion:
        W, b = dense(pair, fused.kind, fused.layer, coupling, r)
        columns = fused.kind in ("o", "down")
        strength = (
            pair.transports.target.side(fused.layer, side_of(fused.kind, "in" if columns else "out")).abs().mean(0)
        )
        assert set(fused.index.tolist()) == set(strength.topk(4).indices.tolist())
        assert fused.axis == ("columns" if columns else "rows")
        expected = W[:, fused.index] if columns else W[fused.index]
        torch.testing.assert_close(fused.moved.double(), expected, rtol=1e-4, atol=1e-7)
        if fused.kind in ("q", "k", "v"):
            assert fused.bias is not None
            torch.testing.assert_close(fused.bias.double(), b[fused.index], rtol=1e-4, atol=1e-7)
        else:
            assert fused.bias is None
        own = pair.target.read(fusion.projection(fused.layer, fused.kind).weight)
        own = own[:, fused.index] if columns else own[fused.index]
        assert fused.transported_norm == pytest.approx(float(expected.norm()), rel=1e-4)
        assert fused.target_norm == pytest.approx(float(own.norm()), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(own.flatten().double(), expected.flatten(), dim=0)
        assert fused.cosine == pytest.approx(float(cosine), abs=1e-4)


def test_all_neurons(pair: Pair) -> None:
    fused = pair.fuse(["gate"], k="all", r=None).fused(1, "gate")
    torch.testing.assert_close(fused.moved.double(), dense(pair, "gate", 1, "plan", None)[0], rtol=1e-4, atol=1e-7)


def test_raw_units_scale_barycentric_maps(pair: Pair) -> None:
    fused = pair.fuse(["k"], k="all", r=None, coupling="barycentric", units="raw").fused(0, "k")
    expected = torch.zeros_like(fused.moved)
    for m, p in ((0, 0.6), (2, 0.4)):
        Q_out, Q_in = random_plan("k.out", 0, m, 16, 16), random_plan("qkv.in", 0, m, 32, 48)
        std = {
            side: (pair.transports.target.side(0, side).std(0), pair.transports.source.side(m, side).std(0))
            for side in ("k.out", "qkv.in")
        }
        out_A, out_B = std["k.out"]
        in_A, in_B = std["qkv.in"]
        Phi_out = torch.diag(out_A) @ (Q_out / Q_out.sum(1, keepdim=True)) @ torch.diag(1 / out_B)
        Phi_in = torch.diag(in_B) @ (Q_in / Q_in.sum(0)).T @ torch.diag(1 / in_A)
        theirs = pair.layouts.source.get(m, "k")
        assert theirs is not None
        expected += p * Phi_out @ pair.source.read(theirs.weight) @ Phi_in
    torch.testing.assert_close(fused.moved, expected, rtol=1e-4, atol=1e-6)


def test_a_model_into_itself_is_itself(tmp_path: Path) -> None:
    """Matched plans, barycentric, all neurons, alpha 1: the target's weights, to rounding."""
    folder = make_model(tmp_path / "model", "qwen2", layers=2)
    noisy_biases(folder)
    pair = Pair.make(tmp_path, folder, folder, torch.eye(2) / 2, identity_plan)
    for units in ("z", "raw"):  # in raw units both maps are scaled by the two runs' own statistics
        if units == "raw":
            pair.transports.source = pair.transports.target
        for fused in pair.fuse(PROJECTIONS, k="all", coupling="barycentric", units=units):
            projection = pair.layouts.target.get(fused.layer, fused.kind)
            assert projection is not None
            W = pair.target.read(projection.weight)
            b = pair.target.read(projection.bias) if projection.bias else None
            W_new, b_new = apply(W, b, fused, 1.0, "free")
            torch.testing.assert_close(W_new, W)
            torch.testing.assert_close(b_new, b)
            assert fused.ratio == pytest.approx(1, rel=1e-5)
            assert fused.cosine == pytest.approx(1, rel=1e-5)


class Shuffled(Recorded):
    """The same activations with the channels of every side in another order."""

    def side(self, layer: int, side: str) -> Tensor:
        X = super().side(layer, side)
        return X[:, channel_maps.permutation(9, side, 0, X.shape[1])]


def test_a_source_with_shuffled_neurons_gives_the_target_back(tmp_path: Path) -> None:
    """Solved plans, end to end: correlations find the order, fusion undoes it."""
    folder = make_model(tmp_path / "target", "llama", layers=2)
    shuffled = Path(shutil.copytree(folder, tmp_path / "source"))
    pair = Pair.make(tmp_path, folder, shuffled, torch.eye(2) / 2)
    tensors = load_file(shuffled / "model.safetensors")
    for p in pair.layouts.target.projections:
        rows, columns = (
            channel_maps.permutation(9, side_of(p.kind, end), 0, n) for end, n in (("out", p.d_out), ("in", p.d_in))
        )
        tensors[p.weight] = tensors[p.weight][rows][:, columns].contiguous()
    save_file(tensors, shuffled / "model.safetensors", {"format": "pt"})
    options = Transport(epsilon=0.01, eta=0.01, projections=PROJECTIONS, top_layers=1)
    target, source = Recorded(pair.layouts.target, 1, T=200), Shuffled(pair.layouts.source, 1, T=200)
    solved = transport(Both(target=target, source=source), PROJECTIONS, options, pair.run, pair.events.append)
    real = Pair(pair.target, Checkpoint(shuffled), pair.layouts, solved, pair.run, pair.events)
    for r in (None, 3):
        for fused in real.fuse(PROJECTIONS, k="all", coupling="barycentric", r=r):
            W = pair.target.read(pair.layouts.target.get(fused.layer, fused.kind).weight)  # type: ignore[union-attr]
            torch.testing.assert_close(fused.moved, W, rtol=1e-3, atol=1e-4)
        placebo = real.fuse(PROJECTIONS, k="all", coupling="barycentric", r=r, permuted=True)
        assert all(abs(fused.cosine) < 0.5 for fused in placebo)


def test_permuted_plans_carry_other_channels_at_the_same_size(pair: Pair) -> None:
    options = {"coupling": "barycentric", "r": None, "k": "all"}
    fused = pair.fuse(["q"], **options).fused(0, "q")
    placebo = pair.fuse(["q"], permuted=True, **options)
    again = pair.fuse(["q"], permuted=True, seed=1, **options)
    moved = placebo.fused(0, "q").moved
    assert not torch.allclose(moved, fused.moved)
    assert not torch.allclose(moved, again.fused(0, "q").moved)
    assert float(moved.norm()) == pytest.approx(float(fused.moved.norm()), rel=0.5)
    expected = torch.zeros_like(moved)
    for m, p in ((0, 0.6), (2, 0.4)):
        Q_out, Q_in = random_plan("q.out", 0, m, 32, 48), random_plan("qkv.in", 0, m, 32, 48)
        Q_out = Q_out[:, channel_maps.permutation(0, "q.out", m, 48)]
        Q_in = Q_in[:, channel_maps.permutation(0, "qkv.in", m, 48)]
        theirs = pair.layouts.source.get(m, "q")
        assert theirs is not None
        W_B = pair.source.read(theirs.weight)
        expected += p * (Q_out / Q_out.sum(1, keepdim=True)) @ W_B @ (Q_in / Q_in.sum(0)).T
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_pieces_are_reused_for_another_alpha_and_not_for_another_k(pair: Pair) -> None:
    first = pair.fuse(["q"], alpha=0.1)
    assert pair.fuse(["q"], alpha=[0.2, 0.3], norm="keep").key == first.key
    assert [e.outcome for e in pair.events if isinstance(e, StageFinished)] == ["done", "cached"]
    assert pair.fuse(["q"], k=5).key != first.key
    assert pair.fuse(["q"], permuted=True).key != first.key


def test_only_chosen_layers(pair: Pair) -> None:
    assert pair.fuse(["q"], layers=[1]).layers() == (1,)


def test_source_layers_without_the_projection_are_skipped(pair: Pair) -> None:
    theirs = pair.layouts.source
    hybrid = type(theirs)(theirs.layers, tuple(p for p in theirs.projections if (p.layer, p.kind) != (2, "q")), ())
    layouts = Both(target=pair.layouts.target, source=hybrid)
    lame = Pair(pair.target, pair.source, layouts, pair.transports, pair.run, pair.events)
    whole = pair.fuse(["q"], k="all").fused(1, "q").moved
    assert torch.equal(lame.fuse(["q"], k="all").fused(1, "q").moved, whole)  # P[1, 2] is 0 anyway
    assert bool(lame.fuse(["q"], k="all").fused(0, "q").moved.any())


def test_bias_notes(pair: Pair, tmp_path: Path) -> None:
    assert pair.fuse(PROJECTIONS).notes == ()
    assert "left alone" in pair.fuse(["q"], biases=False).notes[0]
    assert pair.fuse(["q"], biases=False).fused(0, "q").bias is None
    llama = make_model(tmp_path / "llama", "llama", layers=3)
    plain = Pair.make(tmp_path, pair.target.folder, llama, P)
    fusion = plain.fuse(["q"])
    assert fusion.fused(0, "q").bias is None
    assert fusion.notes == ("q: bias left alone; the source has none",)


def test_neurons_that_receive_nothing_are_counted_and_told(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", layers=2)

    def greedy(side: str, l: int, m: int, n: int, n_source: int) -> Tensor:
        Q = torch.rand(n, n_source) * 0.1
        Q[:, 0] = 1 + torch.rand(n)  # every row's largest entry lies in one column
        return Q / Q.sum()

    pair = Pair.make(tmp_path, model, model, torch.eye(2) / 2, greedy)
    fused = pair.fuse(["q"], k="all", r=1, coupling="barycentric").fused(0, "q")
    assert fused.empty == 31
    assert bool(torch.isfinite(fused.moved).all())
    assert any("received nothing" in e.message for e in pair.events if isinstance(e, Warned))


def test_nan_in_the_source_is_an_error(tmp_path: Path) -> None:
    target, source = make_model(tmp_path / "a", layers=2), make_model(tmp_path / "b", layers=3)
    pair = Pair.make(tmp_path, target, source, P)
    name = pair.layouts.source.get(0, "v").weight  # type: ignore[union-attr]
    info = pair.source.info(name)
    with open(info.file, "rb+") as file:
        file.seek(info.start)
        file.write(torch.tensor([float("nan")]).numpy().tobytes())
    with pytest.raises(NumericsError, match=r"layers\.0\.self_attn\.v_proj"):
        pair.fuse(["v"])


def test_a_damaged_piece_is_named(pair: Pair) -> None:
    fusion = pair.fuse(["q"])
    fusion.pieces[0].write_bytes(b"x")
    with pytest.raises(StorageError, match="fused-"):
        fusion.fused(0, "q")


def test_check_k(pair: Pair) -> None:
    assert check_k(pair.layouts.target, PROJECTIONS, "all") == []
    assert check_k(pair.layouts.target, PROJECTIONS, 16) == []
    problems = check_k(pair.layouts.target, ["q", "k", "down"], 33)
    assert len(problems) == 2  # down has 48 columns
    assert "33" in problems[0]
    assert "q of target layer 0 has 32 rows" in problems[0]
    assert "k of target layer 0 has 16 rows" in problems[1]
    with pytest.raises(CheckError, match="16 rows"):
        pair.fuse(k=17)


def test_strongest_is_ascending_and_takes_the_first_of_equals() -> None:
    s = torch.tensor([1.0, 3.0, 1.0, 5.0, 1.0])
    assert strongest(s, 3).tolist() == [0, 1, 3]
    assert strongest(s, "all").tolist() == [0, 1, 2, 3, 4]


def some(axis: str, bias: bool = True) -> tuple[Tensor, Tensor, FusedProjection]:
    generator = torch.Generator().manual_seed(3)
    W, b = torch.randn(6, 5, generator=generator), torch.randn(6, generator=generator)
    index = torch.tensor([1, 4])
    moved = torch.randn((2, 5) if axis == "rows" else (6, 2), generator=generator)
    fused = FusedProjection(
        0, "q", axis, index, moved, torch.randn(2, generator=generator) if bias else None, torch.float32, 1, 1, 0, 0
    )  # type: ignore[arg-type]
    return W, b, fused


@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("norm", ["free", "keep"])
def test_apply_changes_exactly_the_named_entries(axis: str, norm: str) -> None:
    W, b, fused = some(axis, bias=axis == "rows")
    before = W.clone(), b.clone()
    W_new, b_new = apply(W, b, fused, 0.3, norm)
    assert torch.equal(W, before[0]) and torch.equal(b, before[1])  # pure
    view, new = (W, W_new) if axis == "rows" else (W.T, W_new.T)
    others = [0, 2, 3]
    assert torch.equal(new[others], view[others])
    expected = 0.7 * view[fused.index] + 0.3 * (fused.moved if axis == "rows" else fused.moved.T)
    factor = torch.ones(2)
    if norm == "keep":
        factor = view[fused.index].norm(dim=1) / expected.norm(dim=1)
        torch.testing.assert_close(new[fused.index].norm(dim=1), view[fused.index].norm(dim=1))
    torch.testing.assert_close(new[fused.index], expected * factor[:, None])
    assert b_new is not None
    if axis == "rows":
        assert fused.bias is not None
        torch.testing.assert_close(b_new[fused.index], (0.7 * b[fused.index] + 0.3 * fused.bias) * factor)
        assert torch.equal(b_new[[0, 2, 3, 5]], b[[0, 2, 3, 5]])
    else:
        assert torch.equal(b_new, b)


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_shrink_placebo(axis: str) -> None:
    W, b, fused = some(axis)
    W_new, b_new = apply(W, b, fused, 0.3, "free", transported=False)
    zero = apply(
        W, b, FusedProjection(**{**vars(fused), "moved": fused.moved * 0, "bias": torch.zeros(2)}), 0.3, "free"
    )
    assert torch.equal(W_new, zero[0])
    assert b_new is not None and zero[1] is not None
    assert torch.equal(b_new, zero[1])
    same = apply(W, b, fused, 0.3, "keep", transported=False)
    assert torch.equal(same[0], W)
    assert same[1] is not None and torch.equal(same[1], b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["free", "keep"])
def test_alpha_zero_is_bit_equal_in_every_dtype(dtype: torch.dtype, norm: str) -> None:
    W, b, fused = some("rows")
    W, b = W.to(dtype), b.to(dtype)
    W_new, b_new = apply(W, b, fused, 0.0, norm)
    assert b_new is not None
    assert torch.equal(W_new.to(dtype), W) and torch.equal(b_new.to(dtype), b)


def test_keep_of_a_row_mixed_to_zero_leaves_the_targets() -> None:
    W, b, fused = some("rows")
    nothing = FusedProjection(**{**vars(fused), "moved": fused.moved * 0})
    W_new, _ = apply(W, b, nothing, 1.0, "keep")
    assert torch.equal(W_new, W)


def test_alpha_zero_gives_the_targets_bytes_back(pair: Pair, tmp_path: Path) -> None:
    fusion: Fusion = pair.fuse(PROJECTIONS)
    patches = {
        fusion.projection(f.layer, f.kind).weight: lambda W, f=f: apply(W, None, f, 0.0, "keep")[0] for f in fusion
    }
    patch_checkpoint(pair.target, tmp_path / "out", patches, lambda done: None)
    written, own = (folder / "model.safetensors" for folder in (tmp_path / "out", pair.target.folder))
    assert written.read_bytes() == own.read_bytes()
