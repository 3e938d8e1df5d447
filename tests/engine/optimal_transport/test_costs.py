"""Any cost matrix and any marginals. References: POT in fp64, and the correlation costs written out as a matrix."""

from __future__ import annotations

import ot
import pytest
import torch
from torch import Tensor

from tests.engine.optimal_transport.problems import make_zscores
from tmerge_tui.engine.optimal_transport import sinkhorn
from tmerge_tui.engine.optimal_transport.cost import CorrelationCosts, Costs, DenseCosts
from tmerge_tui.engine.optimal_transport.sinkhorn import SOLVERS, plan, solve_fast
from tmerge_tui.engine.optimal_transport.stopping import Stopping
from tmerge_tui.errors import NumericsError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def marginal(n: int, seed: int) -> Tensor:
    """Masses that differ by a factor of up to 20."""
    a = 0.05 + draw(n, seed=seed)
    return a / a.sum()


def relative(Q: Tensor, expected: Tensor) -> float:
    return float((Q.double() - expected.double()).abs().max() / expected.double().max())


@pytest.mark.parametrize("epsilon", [0.1, 0.03, 0.01])
def test_a_dense_cost_equals_the_correlation_cost(epsilon: float) -> None:
    Zx, *Zys = (make_zscores(64, 30, 50, seed=seed)[min(seed, 1)] for seed in range(4))
    rho = CorrelationCosts(Zx, Zys)
    dense = DenseCosts(torch.stack([rho.matrix(i) for i in range(3)]))
    pairs = zip(solve_fast(rho, epsilon), solve_fast(dense, epsilon), strict=True)
    for i, (one, other) in enumerate(pairs):
        assert one.converged and other.converged
        assert abs(one.cost - other.cost) < 1e-6
        assert relative(plan(rho, epsilon, one, i), plan(dense, epsilon, other, i)) < 1e-5
        rows = torch.tensor([4, 0])
        Q = plan(dense, epsilon, other, i)
        torch.testing.assert_close(plan(dense, epsilon, other, i, rows), Q[rows], rtol=1e-5, atol=0)


@pytest.mark.parametrize("epsilon", [0.3, 0.05, 0.005])
@pytest.mark.parametrize("solver", SOLVERS)
def test_marginals_that_are_not_uniform_against_pot(solver: str, epsilon: float) -> None:
    C, a, b = draw(25, 40), marginal(25, 1), marginal(40, 2)
    costs = DenseCosts(C)
    expected = ot.sinkhorn(a, b, C, epsilon, method="sinkhorn_log", numItermax=100_000, stopThr=1e-13)
    (solution,) = SOLVERS[solver](costs, epsilon, Stopping(5000), a, b)
    Q = plan(costs, epsilon, solution).double()
    assert solution.converged
    assert relative(Q, expected) < 2e-5
    assert abs(solution.cost - float((C * expected).sum())) < 1e-5
    off = max(float((Q.sum(1) - a).abs().sum()), float((Q.sum(0) - b).abs().sum()))
    assert off < solution.violation + 3e-7
    worst = max(float((Q.sum(1) - a).abs().max()), float((Q.sum(0) - b).abs().max()))
    assert worst < solution.max_violation + 3e-7


def test_log_domain_batched_products_and_blocks_know_the_marginals_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, a, b = DenseCosts(draw(3, 30, 20)), marginal(30, 1), marginal(20, 2)
    blocks = solve_fast(costs, 0.1, None, a, b)
    with monkeypatch.context() as patch:
        patch.setattr(sinkhorn, "KERNEL_SPREAD", 0.0)
        logs = solve_fast(costs, 0.1, None, a, b)

    class Batched(sinkhorn.Kernels):
        def __init__(self, log_K: Tensor, spread: float) -> None:
            super().__init__(log_K, spread)
            self.in_blocks = False

    monkeypatch.setattr(sinkhorn, "Kernels", Batched)
    for i, found in enumerate(zip(blocks, logs, solve_fast(costs, 0.1, None, a, b), strict=True)):
        assert [one.solver for one in found] == ["fast", "fast-log", "fast"]
        Q, *others = (plan(costs, 0.1, one, i) for one in found)
        assert all(relative(other, Q) < 1e-5 for other in others)


@pytest.mark.parametrize("stop", ["relative", "absolute"])
def test_uniform_marginals_may_be_written_out(stop: str) -> None:
    costs = DenseCosts(draw(12, 31))
    uniform = [torch.full((n,), 1 / n) for n in (12, 31)]
    stopping = Stopping(measure=stop)  # type: ignore[arg-type]
    (one,), (other,) = solve_fast(costs, 0.1, stopping), solve_fast(costs, 0.1, stopping, *uniform)
    assert one.iterations == other.iterations
    torch.testing.assert_close(one.f, other.f, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("epsilon", [0.05, 0.001])
def test_the_cost_of_a_permutation_recovers_it(solver: str, epsilon: float) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    costs = DenseCosts(1.0 - torch.eye(20)[:, order])
    (solution,) = SOLVERS[solver](costs, epsilon, Stopping())
    Q = plan(costs, epsilon, solution)
    assert torch.equal(Q.argmax(0), order)
    assert relative(Q, torch.eye(20)[:, order] / 20) < 1e-6
    assert solution.cost == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cost_may_lie_anywhere_and_have_any_scale(solver: str) -> None:
    """A constant more in C changes neither the plan nor whether it is found; a scale comes with epsilon."""
    C = draw(15, 22)
    (here,) = SOLVERS[solver](DenseCosts(C), 0.1, Stopping())
    expected = plan(DenseCosts(C), 0.1, here)
    for costs, epsilon in ((DenseCosts(C + 1000), 0.1), (DenseCosts(C - 50), 0.1), (DenseCosts(C * 1e4), 1e3)):
        (solution,) = SOLVERS[solver](costs, epsilon, Stopping())
        assert solution.converged and not solution.fell_back
        assert relative(plan(costs, epsilon, solution), expected) < 1e-5
        assert solution.cost == pytest.approx(float((costs.matrix(0) * expected).sum()), rel=1e-5)


def test_a_cost_that_is_the_same_everywhere_gives_the_product_of_the_marginals() -> None:
    costs, a, b = DenseCosts(torch.full((6, 9), 3.0)), marginal(6, 1), marginal(9, 2)
    (solution,) = solve_fast(costs, 0.1, None, a, b)
    assert relative(plan(costs, 0.1, solution), a[:, None] * b) < 1e-6


@pytest.mark.parametrize("stop", ["relative", "absolute"])
def test_a_small_mass_is_met_as_well_as_a_large_one(stop: str) -> None:
    costs, a = DenseCosts(draw(10, 10)), torch.full((10,), (1 - 1e-6) / 9)
    a[4] = 1e-6
    (solution,) = solve_fast(costs, 0.1, Stopping(measure=stop), a)  # type: ignore[arg-type]
    assert solution.converged
    row = float(plan(costs, 0.1, solution)[4].double().sum())
    assert row == pytest.approx(1e-6, rel=1e-3 if stop == "absolute" else 2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.index_fill(0, torch.tensor([2]), -0.1), r"1 of 5 entries are not positive, first a\[2\] = -0.1"),
        (lambda a: a.index_fill(0, torch.tensor([0, 1]), 0.0), r"2 of 5 entries are not positive"),
        (
            lambda a: a.index_fill(0, torch.tensor([3]), torch.nan),
            r"1 of 5 .* not positive, first a\[3\] = nan",
        ),
        (
            lambda a: a.index_fill(0, torch.tensor([3]), torch.inf),
            r"1 of 5 .* not positive, first a\[3\] = inf",
        ),
        (lambda a: 2 * a, "sums to 2"),
        (lambda a: a[:4], r"has the shape \[4\]"),
        (lambda a: a[None], r"has the shape \[1, 5\]"),
    ],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_no_marginal(solver: str, change: object, message: str) -> None:
    costs, a = DenseCosts(draw(5, 5)), torch.full((5,), 0.2)
    for pair in ((change(a), None), (None, change(a))):  # type: ignore[operator]
        with pytest.raises(NumericsError, match=message):
            SOLVERS[solver](costs, 0.1, Stopping(), *pair)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_cost_that_is_not_finite(bad: float) -> None:
    C = draw(4, 5)
    C[1, 2] = bad
    with pytest.raises(NumericsError, match="NaN or Inf in 1 of 20 entries"):
        DenseCosts(C)


def test_z_scores_that_are_not_finite_are_no_plan() -> None:
    Zx, Zy = make_zscores(20, 6, 7)
    Zy[0, 0] = torch.nan
    costs: Costs = CorrelationCosts(Zx, [Zy])
    with pytest.raises(NumericsError, match="not finite even in the log domain"):
        solve_fast(costs, 0.1)
