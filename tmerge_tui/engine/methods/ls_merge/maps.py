"""From source to target: which layer, which chunk, and the Gaussian map between latents. Pure functions.

Neither the layer nor the chunk is defined in print; both rules here are choices of ours, by option.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-12  # eigenvalues of a covariance, relative to the largest


def source_layer(rule: str, layer: int, layers: int, theirs: int) -> int | None:
    """nearest: at the same share of the depth; first: of the same number, None beyond the source's last."""
    if rule == "nearest":
        return round(layer * (theirs - 1) / max(layers - 1, 1))
    return layer if layer < theirs else None


def matched_rows(rule: str, rows: Tensor, target: Tensor) -> Tensor:
    """[n_t, d] out of source rows [n_s, d]; `target` [n_t, d] says how many, and for a plan between both, which."""
    return resample(rows, len(target)) if rule == "resample" else barycentric(rows, target)


def resample(rows: Tensor, count: int) -> Tensor:
    """Linear interpolation along the order of the rows, ends on ends: [n, d] -> [count, d]; the same rows for n."""
    if len(rows) == count:
        return rows
    at = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64, device="cpu").to(rows.device, rows.dtype)
    low = at.floor().long().clamp(max=max(len(rows) - 2, 0))
    high = (low + 1).clamp(max=len(rows) - 1)
    return rows[low].lerp(rows[high], (at - low).unsqueeze(1))


def barycentric(rows: Tensor, target: Tensor) -> Tensor:
    """Mean of the source rows that each target row gets by the exact plan between both clouds, squared distances."""
    import ot

    cost = torch.cdist(target.double(), rows.double()).square().cpu().numpy()
    plan = torch.from_numpy(ot.emd([], [], cost)).to(rows)
    return plan @ rows / plan.sum(1, keepdim=True)


@dataclass(frozen=True)
class Bures:
    """z -> mean_t + A (z - mean_s): the optimal map between two Gaussians."""

    source: Tensor  # [d] fp64
    target: Tensor  # [d]
    A: Tensor  # [d, d], symmetric
    shrinkage: tuple[float, float]  # of the target's covariance, of the source's

    def __call__(self, rows: Tensor) -> Tensor:
        """[n, d] in the type it comes in."""
        return (self.target + (rows.double() - self.source) @ self.A).to(rows.dtype)

    @property
    def distance(self) -> float:
        """||A - I||_F / sqrt(d): how far the map is from carrying means alone."""
        d = len(self.A)
        return float(torch.linalg.matrix_norm(self.A - torch.eye(d).to(self.A)) / d**0.5)


def bures(source: Tensor, target: Tensor) -> Bures:
    """Fitted to two clouds [n_s, d], [n_t, d], covariances shrunk by Ledoit and Wolf's rule.

    A = S_s^-1/2 (S_s^1/2 S_t S_s^1/2)^1/2 S_s^-1/2
    """
    (S_s, r_s), (S_t, r_t) = ledoit_wolf(source), ledoit_wolf(target)
    root, inverse = _powers(S_s)
    middle, _ = _powers(root @ S_t @ root)
    A = inverse @ middle @ inverse
    return Bures(source.double().mean(0), target.double().mean(0), (A + A.T) / 2, (r_t, r_s))


def ledoit_wolf(X: Tensor) -> tuple[Tensor, float]:
    """(covariance [d, d] of rows [n, d] in fp64, shrunk towards its mean variance; by which share)."""
    X = X.double() - X.double().mean(0)
    n, d = X.shape
    S = X.T @ X / n
    mean = S.diagonal().mean()
    spread = (S.square().sum() - d * mean.square()).clamp(min=0)  # ||S - mean I||^2
    # mean over rows of ||x x^T - S||^2, over n
    noise = (X.square().sum(1).square().mean() - S.square().sum()).clamp(min=0) / n
    share = float((noise / spread).clamp(max=1)) if float(spread) > 0 else 1.0
    return (1 - share) * S + share * mean * torch.eye(d).to(S), share


def _powers(S: Tensor) -> tuple[Tensor, Tensor]:
    """(S^1/2, S^-1/2) of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((S + S.T) / 2)
    root = values.clamp(min=FLOOR * float(values[-1].clamp(min=FLOOR))).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
