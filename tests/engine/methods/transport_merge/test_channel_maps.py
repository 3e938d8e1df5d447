"""Maps from plans: against definitions written out entry by entry, and theorem 4.1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmerge_tui.engine.methods.transport_merge import channel_maps
from tmerge_tui.engine.methods.transport_merge.fuse import carry
from tmerge_tui.models.pair import Pair


def plan(n: int, m: int, seed: int = 0) -> torch.Tensor:
    Q = torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return Q / Q.sum()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), m=st.integers(1, 9), r=st.integers(1, 10), seed=st.integers(0, 99))
def test_sparsify_is_the_intersection_of_rows_and_columns(n: int, m: int, r: int, seed: int) -> None:
    Q = plan(n, m, seed)
    sparse = channel_maps.sparsify(Q, r)
    for i in range(n):
        for j in range(m):
            larger_in_row = int((Q[i] > Q[i, j]).sum())
            larger_in_column = int((Q[:, j] > Q[i, j]).sum())
            kept = larger_in_row < r and larger_in_column < r
            assert sparse[i, j] == (Q[i, j] if kept else 0)


def test_sparsify_without_r_keeps_everything() -> None:
    Q = plan(4, 7)
    assert torch.equal(channel_maps.sparsify(Q, None), Q)


def test_plan_coupling_is_the_plan() -> None:
    Q = plan(3, 5)
    assert torch.equal(channel_maps.out_map(Q, "plan"), Q)
    assert torch.equal(channel_maps.in_map(Q, "plan"), Q.T)


def test_barycentric_maps_are_averages() -> None:
    Q = plan(3, 5)
    torch.testing.assert_close(channel_maps.out_map(Q, "barycentric").sum(1), torch.ones(3, dtype=Q.dtype))
    torch.testing.assert_close(channel_maps.in_map(Q, "barycentric").sum(1), torch.ones(5, dtype=Q.dtype))
    torch.testing.assert_close(channel_maps.in_map(Q, "barycentric")[4, 2], Q[2, 4] / Q[:, 4].sum())


def test_empty_rows_and_columns_stay_zero() -> None:
    Q = plan(4, 6)
    Q[1], Q[:, 2] = 0, 0
    for Phi, empty in ((channel_maps.out_map(Q, "barycentric"), 1), (channel_maps.in_map(Q, "barycentric"), 2)):
        assert torch.isfinite(Phi).all()
        assert not Phi[empty].any()
    P = channel_maps.layer_weights(torch.tensor([[0.0, 0.0], [0.3, 0.1]]), "barycentric")
    torch.testing.assert_close(P, torch.tensor([[0.0, 0.0], [0.75, 0.25]]))


def test_sparsification_can_empty_a_row() -> None:
    Q = torch.tensor([[0.4, 0.1], [0.3, 0.2]])  # r = 1: row maxima (0, 0), (1, 0); column maxima (0, 0), (1, 1)
    assert torch.equal(channel_maps.sparsify(Q, 1), torch.tensor([[0.4, 0.0], [0.0, 0.0]]))
    assert torch.equal(
        channel_maps.out_map(channel_maps.sparsify(Q, 1), "barycentric"), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    )


def test_layer_weights_of_a_plan_undo_its_marginal() -> None:
    P = torch.full((4, 3), 1 / 12)
    P[2] = 0  # a layer without the projection takes no part
    torch.testing.assert_close(channel_maps.layer_weights(P, "plan"), 3 * P)


def test_raw_units_map_raw_activations() -> None:
    """With a plan that matches channels one to one, raw source outputs become raw target outputs exactly."""
    order = torch.tensor([2, 0, 1])
    Q = torch.zeros(3, 3)
    Q[torch.arange(3), order] = 1 / 3
    z = torch.randn(50, 3)
    s_B, s_A = torch.tensor([1.0, 5.0, 0.1]), torch.tensor([2.0, 0.5, 3.0])
    source, target = z * s_B, z[:, order] * s_A  # channel i of the target does what channel order[i] of the source does
    torch.testing.assert_close(source @ channel_maps.out_map(Q, "barycentric", Pair(target=s_A, source=s_B)).T, target)
    torch.testing.assert_close(target @ channel_maps.in_map(Q, "barycentric", Pair(target=s_A, source=s_B)).T, source)


def test_constant_channels_carry_nothing_in_raw_units() -> None:
    s = torch.tensor([1.0, 0.0])
    assert torch.equal(channel_maps.inverse(s), s)
    for build in (channel_maps.out_map, channel_maps.in_map):
        assert torch.isfinite(build(torch.full((2, 2), 0.25), "barycentric", Pair(target=s, source=s))).all()


@pytest.mark.parametrize("coupling", ["plan", "barycentric"])
def test_theorem_4_1(coupling: str) -> None:
    """(Phi_out W_B Phi_in) h = Phi_out (W_B (Phi_in h)) for every h."""
    generator = torch.Generator().manual_seed(1)
    W_B = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    Phi_out, Phi_in = channel_maps.out_map(plan(4, 7), coupling), channel_maps.in_map(plan(6, 11), coupling)
    h = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(carry(Phi_out, W_B, Phi_in) @ h, Phi_out @ (W_B @ (Phi_in @ h)))


def test_permutation_is_seeded_and_differs_by_side_and_layer() -> None:
    first = channel_maps.permutation(0, "q.out", 1, 50)
    assert torch.equal(first.sort().values, torch.arange(50))
    assert torch.equal(first, channel_maps.permutation(0, "q.out", 1, 50))
    others = [channel_maps.permutation(*which, 50) for which in ((1, "q.out", 1), (0, "k.out", 1), (0, "q.out", 2))]
    assert not any(torch.equal(first, other) for other in others)


class Plans:
    def order(self, side: str) -> str:
        return side

    def plan(self, side: str, l: int, m: int) -> torch.Tensor:
        return plan(5, 8, seed=10 * l + m)


@pytest.mark.parametrize("end", ["in", "out"])
def test_a_map_is_its_plan_permuted_sparsified_and_normalised(end: str) -> None:
    """The order matters: what is sparsified is the permuted plan, in its columns as in its rows."""
    s = Pair(target=torch.rand(5, dtype=torch.float64) + 1, source=torch.rand(8, dtype=torch.float64) + 1)
    found = channel_maps.channel_map(Plans(), "q.out", 1, 2, end, "barycentric", r=3, std=s, permuted=7)  # type: ignore[arg-type]
    Q = plan(5, 8, seed=12)[:, channel_maps.permutation(7, "q.out", 2, 8)]
    make = channel_maps.out_map if end == "out" else channel_maps.in_map
    assert torch.equal(found, make(channel_maps.sparsify(Q, 3), "barycentric", s))
    assert found.shape == ((5, 8) if end == "out" else (8, 5))
    straight = channel_maps.channel_map(Plans(), "q.out", 1, 2, end, "plan")  # type: ignore[arg-type]
    assert torch.equal(straight, plan(5, 8, seed=12) if end == "out" else plan(5, 8, seed=12).T)
