"""Reference: numpy.corrcoef in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.optimal_transport.problems import make_pair
from tmerge_tui.engine.optimal_transport.cost import correlation, zscore
from tmerge_tui.errors import NumericsError


@settings(max_examples=25, deadline=None)
@given(T=st.integers(2, 40), n=st.integers(1, 20), m=st.integers(1, 20), seed=st.integers(0, 1000))
def test_correlation_is_pearsons(T: int, n: int, m: int, seed: int) -> None:
    X, Y = make_pair(T, n, m, seed=seed)
    expected = np.corrcoef(X.double().numpy(), Y.double().numpy(), rowvar=False)[:n, n:]
    # fp32 inputs of size |offset| keep the variation of a small channel to about 1e-5
    np.testing.assert_allclose(correlation(zscore(X), zscore(Y)).numpy(), expected, atol=2e-5)


def test_columns_are_centred_and_of_norm_one() -> None:
    Z = zscore(make_pair(64, 30, 5)[0]).double()
    assert Z.mean(0).abs().max() < 1e-7
    assert (Z.norm(dim=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7, 1e-30])
def test_constant_channel_correlates_with_nothing(value: float) -> None:
    X = make_pair(33, 4, 1)[0]
    X[:, 2] = value
    Z = zscore(X)
    assert torch.equal(Z[:, 2], torch.zeros(33))
    assert (Z[:, [0, 1, 3]].norm(dim=0) > 0.999).all()


def test_noise_of_rounding_is_a_constant_channel() -> None:
    X = torch.full((50, 2), 1000.0)
    X[::2, 0] += torch.finfo(torch.float32).eps * 500  # one unit in the last place: not a signal
    X[::2, 1] += 0.1
    Z = zscore(X)
    assert Z[:, 0].abs().max() == 0
    assert abs(float(Z[:, 1].norm()) - 1) < 1e-6


def test_small_signal_on_a_large_offset_survives() -> None:
    signal = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    rho = correlation(zscore(signal), zscore(signal + 4096))  # mean and norm in fp64
    assert float(rho) > 0.999


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_is_an_error_that_says_where(bad: float) -> None:
    X = make_pair(10, 6, 1)[0]
    X[3, 4] = bad
    with pytest.raises(NumericsError) as error:
        zscore(X, "source model, layer 3, qkv.in")
    assert "source model, layer 3, qkv.in" in str(error.value)
    assert "channel 4" in str(error.value)


def test_one_sample_has_no_correlation() -> None:
    assert zscore(torch.randn(1, 5)).abs().max() == 0
