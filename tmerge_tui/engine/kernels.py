"""What Sinkhorn multiplies by: kernels exp(rho / epsilon) of a batch of equally shaped problems.

Two forms with the same three methods, each over the problems still `active`:
    rows(g)     log(K e^g)    [len(active), n]
    columns(f)  log(K^T e^f)  [len(active), n']
    cost(i, f, g, shift)      <log K, Q> of problem i, from which <C, Q> = 1 - epsilon <log K, Q>
Vectors are fp64; a kernel has the precision it was built in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}  # bytes of one row block of the cost: inside a core's cache on a CPU
REACH = 100.0  # how far duals may drift from the absorbed ones before a kernel entry that matters could underflow


class KernelBatch(Protocol):
    """Kernels [B, n, n'] as `anderson.iterate` sees them."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device

    def rows(self, g: Tensor, active: Sequence[int]) -> Tensor: ...

    def columns(self, f: Tensor, active: Sequence[int]) -> Tensor: ...

    def cost(self, i: int, f: Tensor, g: Tensor, shift: float) -> float: ...


class Kernels:
    """K itself, [B, n, n'] in fp32 or fp64: two matrix-vector products an iteration, read at memory speed."""

    def __init__(self, log_K: Tensor) -> None:
        """`log_K` = rho / epsilon is overwritten: C and rho are never stored."""
        self.K = log_K.exp_()
        self.shape = (log_K.shape[0], log_K.shape[1], log_K.shape[2])
        self.dtype, self.device = log_K.dtype, log_K.device

    def rows(self, g: Tensor, active: Sequence[int]) -> Tensor:
        return self._times(self.K, g, active).log_()

    def columns(self, f: Tensor, active: Sequence[int]) -> Tensor:
        return self._times(self.K.mT, f, active).log_()

    def _times(self, K: Tensor, log_v: Tensor, active: Sequence[int]) -> Tensor:
        v = log_v.exp().to(K.dtype)
        if K.is_cuda and len(active) == len(K):
            return torch.bmm(K, v.unsqueeze(2)).squeeze(2).double()
        # On a CPU the plain products are twice as fast as bmm; problems that have left cost nothing.
        return torch.stack([torch.mv(K[i], v_i) for i, v_i in zip(active, v, strict=True)]).double()

    def cost(self, i: int, f: Tensor, g: Tensor, shift: float) -> float:
        K, v = self.K[i], g.double().exp().to(self.dtype)
        block = max(1, BLOCK.get(K.device.type, BLOCK["cpu"]) // (K.shape[1] * K.itemsize))
        space = torch.empty(min(block, len(K)), K.shape[1], dtype=K.dtype, device=K.device)
        sums = [torch.mv(torch.log(part, out=space[: len(part)]).mul_(part), v) for part in K.split(block)]
        return float(torch.cat(sums).double() @ f.double().exp()) * math.exp(shift)


class LogKernels:
    """log K [B, n, n'] in fp64 for small epsilon, where K leaves the range of floating point.

    The duals are absorbed: with K' = exp(log K + f' + g'), products need no exponential while the duals stay near f',
    g'. When they drift away, or a product underflows, the exact log-sum-exp takes its place, and K' is rebuilt.
    """

    def __init__(self, log_K: Tensor) -> None:
        self.log_K = log_K
        self.K = torch.empty_like(log_K)
        self.shape = (log_K.shape[0], log_K.shape[1], log_K.shape[2])
        self.dtype, self.device = log_K.dtype, log_K.device
        self.absorbed: dict[int, tuple[Tensor, Tensor]] = {}

    def rows(self, g: Tensor, active: Sequence[int]) -> Tensor:
        return torch.stack([self._rows(i, g_i) for i, g_i in zip(active, g, strict=True)])

    def columns(self, f: Tensor, active: Sequence[int]) -> Tensor:
        return torch.stack([self._columns(i, f_i) for i, f_i in zip(active, f, strict=True)])

    def _rows(self, i: int, g: Tensor) -> Tensor:
        if i in self.absorbed:
            f0, g0 = self.absorbed[i]
            drift = g - g0
            if float(drift.abs().max()) < REACH:
                product = torch.mv(self.K[i], drift.exp()).log_() - f0
                if product.isfinite().all():
                    return product
        exact = torch.logsumexp(torch.add(self.log_K[i], g, out=self.K[i]), 1)
        self.absorbed[i] = (-exact, g.clone())
        self.K[i].sub_(exact[:, None]).exp_()
        return exact

    def _columns(self, i: int, f: Tensor) -> Tensor:
        f0, g0 = self.absorbed[i]
        drift = f - f0
        middle = float(drift.mean())  # f comes without its shift, f0 with it
        if float((drift - middle).abs().max()) < REACH:
            product = torch.mv(self.K[i].T, (drift - middle).exp()).log_() - g0 + middle
            if product.isfinite().all():
                return product
        return torch.logsumexp(self.log_K[i] + f[:, None], 0)

    def cost(self, i: int, f: Tensor, g: Tensor, shift: float) -> float:
        Q = torch.exp(self.log_K[i] + (f[:, None] + shift) + g)
        return float((Q * self.log_K[i]).sum())
