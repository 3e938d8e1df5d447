"""Maps between source and target. References: POT's Gaussian map, formulas written out, known answers."""

from __future__ import annotations

import ot
import pytest
import torch

from tmerge_tui.engine.methods.ls_merge.maps import barycentric, bures, ledoit_wolf, resample, source_layer


def cloud(n: int, d: int, seed: int) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=dice, dtype=torch.float64)
    return torch.randn(n, d, generator=dice, dtype=torch.float64) @ mix + torch.randn(d, generator=dice)


@pytest.mark.parametrize(("layers", "theirs", "nearest"), [(4, 6, [0, 2, 3, 5]), (3, 1, [0, 0, 0]), (1, 5, [0])])
def test_the_nearest_layer_keeps_both_ends(layers: int, theirs: int, nearest: list[int]) -> None:
    assert [source_layer("nearest", layer, layers, theirs) for layer in range(layers)] == nearest


def test_the_first_layers_meet_as_far_as_both_go() -> None:
    assert [source_layer("first", layer, 4, 2) for layer in range(4)] == [0, 1, None, None]


def test_rows_are_resampled_linearly_with_ends_on_ends() -> None:
    rows = torch.tensor([[0.0], [2.0], [4.0]])
    assert resample(rows, 5).flatten().tolist() == [0, 1, 2, 3, 4]
    assert resample(rows, 2).flatten().tolist() == [0, 4]
    assert torch.equal(resample(rows, 3), rows) and resample(rows[:1], 3).flatten().tolist() == [0, 0, 0]


def test_a_plan_finds_rows_in_another_order() -> None:
    target = cloud(20, 3, 0).float()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(barycentric(target[order], target), target)


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    """Reference: the sums over rows of their paper, written out."""
    X = cloud(30, 5, 2)
    S, share = ledoit_wolf(X)
    Z = X - X.mean(0)
    plain = Z.T @ Z / 30
    mean = plain.trace() / 5
    d2 = (plain - mean * torch.eye(5)).square().sum()
    b2 = sum((torch.outer(z, z) - plain).square().sum() for z in Z) / 30**2
    assert share == pytest.approx(float(b2 / d2))
    assert torch.allclose(S, (1 - share) * plain + share * mean * torch.eye(5).double())


def test_the_bures_map_is_pots() -> None:
    source, target = cloud(50, 4, 3), cloud(60, 4, 4)
    fitted = bures(source, target)
    means = [each.mean(0).numpy() for each in (source, target)]
    covariances = [ledoit_wolf(each)[0].numpy() for each in (source, target)]
    A, b = ot.gaussian.bures_wasserstein_mapping(*means, *covariances)
    assert torch.allclose(fitted(source), source @ torch.from_numpy(A) + torch.from_numpy(b))
    assert all(0 < share < 1 for share in fitted.shrinkage)


def test_the_bures_map_carries_mean_and_covariance() -> None:
    source, target = cloud(200, 3, 5), cloud(300, 3, 6)
    fitted = bures(source, target)
    moved = fitted(source)
    S = ledoit_wolf(source)[0]
    assert torch.allclose(moved.mean(0), target.mean(0))
    assert torch.allclose(fitted.A @ S @ fitted.A, ledoit_wolf(target)[0])


def test_the_bures_map_of_a_cloud_onto_itself_is_none_at_all() -> None:
    """And so it is of the same rows in another order: it knows nothing of which row is which."""
    rows = cloud(100, 6, 7)
    assert bures(rows, rows.flip(0)).distance < 1e-6
    assert torch.allclose(bures(rows, rows.flip(0))(rows), rows, atol=1e-5)
