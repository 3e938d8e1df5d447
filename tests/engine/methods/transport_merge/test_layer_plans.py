"""References: a textbook loop in fp64, and the layer plans computed by the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tmerge_tui.engine.methods.transport_merge.layer_plans import keep_largest, layer_plan, median_scaled
from tmerge_tui.engine.optimal_transport.cost import DenseCosts
from tmerge_tui.engine.optimal_transport.sinkhorn import solve_plain
from tmerge_tui.engine.optimal_transport.stopping import Stopping
from tmerge_tui.errors import NumericsError
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "transport.safetensors")


def everywhere(C: torch.Tensor) -> Pair[torch.Tensor]:
    return Pair(target=torch.ones(C.shape[0], dtype=torch.bool), source=torch.ones(C.shape[1], dtype=torch.bool))


def textbook(C: torch.Tensor, eta: float) -> torch.Tensor:
    K = torch.exp(-C.double() / eta)
    v = torch.ones(C.shape[1], dtype=torch.float64)
    for _ in range(5_000):
        u = 1 / C.shape[0] / (K @ v)
        v = 1 / C.shape[1] / (K.T @ u)
    return u[:, None] * K * v


@pytest.mark.parametrize("epsilon", ["0.1", "0.03"])
def test_median_scaled_gives_the_authors_plan(epsilon: str) -> None:
    C, expected = GOLDEN[f"C_layer.{epsilon}"], GOLDEN[f"P.{epsilon}"].double()
    plan = layer_plan("k", C, C, everywhere(C), Transport(layer_cost="median"))
    # After 1000 plain iterations theirs violates its marginals by up to 3e-4 still; ours has converged.
    assert (plan.P_in - expected).abs().max() < 2e-4
    assert plan.converged
    # The same number of plain iterations gives theirs to fp32.
    scaled = median_scaled(C.double())
    (s,) = solve_plain(DenseCosts(scaled), 0.1, Stopping(1000, 1e-9))
    plain = torch.exp(s.f.double()[:, None] + s.g.double() + s.shift - scaled / 0.1)
    assert (plain - expected).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(3, 7), (8, 4), (1, 5), (5, 1)])
@pytest.mark.parametrize("layer_cost", ["raw", "median"])
def test_against_a_textbook_loop(shape: tuple[int, int], layer_cost: str) -> None:
    generator = torch.Generator().manual_seed(0)
    costs = [torch.rand(shape, generator=generator) * 0.5 + 0.5 for _ in range(2)]
    plan = layer_plan("q", *costs, everywhere(costs[0]), Transport(layer_cost=layer_cost, top_layers=2))
    scale = median_scaled if layer_cost == "median" else torch.clone
    P_in, P_out = (textbook(scale(C), 0.1) for C in costs)
    torch.testing.assert_close(plan.P_in, P_in, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(plan.P_out, P_out, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(plan.P_eff, (P_in * P_out).sqrt(), atol=1e-8, rtol=1e-6)
    assert ((plan.P > 0).sum(1) == min(2, shape[1])).all()
    torch.testing.assert_close(plan.P.sum(1), plan.P_eff.sum(1))


def test_layers_without_the_projection_stay_out() -> None:
    C = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    C[1], C[:, 2] = torch.nan, torch.nan
    there = Pair(target=torch.tensor([True, False, True]), source=torch.tensor([True, True, False, True]))
    plan = layer_plan("q", C, C, there, Transport())
    assert plan.P_in[1].abs().sum() == 0
    assert plan.P_in[:, 2].abs().sum() == 0
    block = plan.P_in[there.target][:, there.source]
    torch.testing.assert_close(block, textbook(C[there.target][:, there.source], 0.1), atol=1e-8, rtol=1e-6)
    assert plan.P.isfinite().all()


def test_no_layer_at_all_is_an_empty_plan() -> None:
    C = torch.full((2, 2), torch.nan)
    none = torch.zeros(2, dtype=torch.bool)
    assert layer_plan("q", C, C, Pair(target=none, source=~none), Transport()).P.abs().sum() == 0


def test_largest_are_kept_with_the_mass_of_the_row() -> None:
    P = torch.tensor([[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 4.0, 0.0, 3.0], [0.0] * 4]) * (10 / 7)
    torch.testing.assert_close(keep_largest(P, 2), expected)
    torch.testing.assert_close(keep_largest(P, 9), P)


def test_equal_costs_cannot_be_divided_by_their_median() -> None:
    C = torch.full((2, 3), 0.7)
    plan = layer_plan("q", C, C, everywhere(C), Transport(layer_cost="median"))
    torch.testing.assert_close(plan.P_eff, torch.full((2, 3), 1 / 6, dtype=torch.float64))


def test_eta_grows_with_large_costs() -> None:
    C = 3000 - torch.rand(3, 3, generator=torch.Generator().manual_seed(0)).double()
    plan = layer_plan("q", C, C, everywhere(C), Transport())
    torch.testing.assert_close(plan.P_in, textbook(C - 2999, 0.1 * float(C.max()) / 1000), atol=1e-8, rtol=1e-6)


def test_unfinished_plan_says_so() -> None:
    C = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    assert not layer_plan("q", C, C, everywhere(C), Transport(layer_max_iterations=1)).converged


def test_cost_that_is_not_finite_is_an_error() -> None:
    C = torch.tensor([[0.1, torch.nan]])
    with pytest.raises(NumericsError):
        layer_plan("q", C, C, everywhere(C), Transport())
