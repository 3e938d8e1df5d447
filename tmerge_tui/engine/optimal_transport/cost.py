"""Correlations between channels (eq. 7): centred columns of norm 1 once per layer, then one product per layer pair."""

from __future__ import annotations

import torch
from torch import Tensor

from tmerge_tui.errors import NumericsError


def zscore(X: Tensor, where: str = "activations") -> Tensor:
    """Z [T, n] fp32 with centred columns of norm 1, so that rho = Zx.T @ Zy is the Pearson correlation.

    Means and norms are fp64. A column that is constant to fp32 rounding has no correlation with anything: it becomes
    zero (rho = 0, cost 1). `where` names model, layer and side in the error. Raises NumericsError on NaN or Inf.
    """
    finite = torch.isfinite(X).all(0)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise NumericsError(
            f"{where}: NaN or Inf in {len(bad)} of {X.shape[1]} channels (first: channel {bad[0]})",
            "finite activations",
            "run the forward pass in float32 (dtype: float32), and check that the checkpoint is sound",
        )
    centred = X.double()
    centred = centred - centred.mean(0)
    norm = centred.norm(dim=0)
    rounding = X.shape[0] ** 0.5 * torch.finfo(torch.float32).eps * X.abs().amax(0)
    varies = norm > rounding
    return torch.where(varies, centred / torch.where(varies, norm, 1.0), 0.0).float()


def correlation(Zx: Tensor, Zy: Tensor) -> Tensor:
    """rho [n, n'] of two layers given as z-scores [T, n] and [T, n']; the cost of eq. 7 is C = 1 - rho."""
    return Zx.T @ Zy
