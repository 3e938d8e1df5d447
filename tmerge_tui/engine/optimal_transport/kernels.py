"""What Sinkhorn multiplies by: kernels exp(S / epsilon) of a batch of equally shaped problems.

Two forms with the same two methods:
    sweep(g, active, w)   with v = e^g: log Kv [B', n] and log K^T (w / Kv) [B', n'] of the B' problems still active;
                          w [n] is the density of the rows' marginal, None where it is uniform
    cost(i, f, g, shift)  <log K, Q> of problem i, from which <C, Q> = offset - epsilon <log K, Q>
Vectors are fp64; a kernel has the precision it was built in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

LINE = 64  # bytes of a cache line, and of the widest vector register
BLOCK = 1 << 19  # bytes of the row blocks in which a CPU passes over a kernel: they stay in a core's cache
REACH = 100.0  # how far duals may drift from the absorbed ones before a kernel entry that matters could underflow


def aligned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor [B, n, n'] each of whose B matrices begins at a multiple of LINE bytes.

    Where data begins decides in which order a BLAS adds it up, and a plan must not depend on its place in a batch.
    """
    B, n, m = shape
    room = -(-n * m * dtype.itemsize // LINE) * LINE // dtype.itemsize
    return torch.empty(B, room, dtype=dtype, device=device)[:, : n * m].unflatten(1, (n, m))


class KernelBatch(Protocol):
    """Kernels [B, n, n'] as `anderson.iterate` sees them."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    spread: float  # max - min of log K or more: no dual that Sinkhorn's step returns spreads further

    def sweep(self, g: Tensor, active: Sequence[int], w: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def cost(self, i: int, f: Tensor, g: Tensor, shift: float) -> float: ...


class Kernels:
    """K itself, [B, n, n'] in fp32 or fp64: an iteration costs two matrix-vector products, one pass over memory."""

    def __init__(self, log_K: Tensor, spread: float) -> None:
        """`log_K` = S / epsilon is overwritten: neither C nor S is stored."""
        self.K, self.spread = log_K, spread
        self.shape = (log_K.shape[0], log_K.shape[1], log_K.shape[2])
        self.dtype, self.device = log_K.dtype, log_K.device
        self.fresh = True  # still log K
        self.in_blocks = log_K.device.type == "cpu"
        self.block = max(1, BLOCK // (log_K.shape[2] * log_K.itemsize)) if self.in_blocks else log_K.shape[1]

    def sweep(self, g: Tensor, active: Sequence[int], w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v, w = g.exp().to(self.dtype), None if w is None else w.to(self.dtype)
        if self.in_blocks:
            Kv, KTu = self._passes(v, active, w)
        else:
            if self.fresh:
                self.K.exp_()
            K = self.K if len(active) == len(self.K) else self.K[torch.tensor(active, device=self.device)]
            Kv = torch.bmm(K, v.unsqueeze(2)).squeeze(2)
            KTu = torch.bmm(_scalings(Kv, w).unsqueeze(1), K).squeeze(1)
        self.fresh = False
        return Kv.double().log_(), KTu.double().log_()

    def _passes(self, v: Tensor, active: Sequence[int], w: Tensor | None) -> tuple[Tensor, Tensor]:
        """Row block by row block, so that both products (and the exponential, the first time) read it from cache."""
        Kvs, KTus = [], []
        ws = [None] * -(-self.shape[1] // self.block) if w is None else w.split(self.block)
        for i, v_i in zip(active, v, strict=True):
            v_i = v_i.clone()  # vectors of their own begin where a line of memory does, see `aligned`
            Kv, KTu = v.new_empty(self.shape[1]), torch.zeros_like(v_i)
            for K, out, part in zip(self.K[i].split(self.block), Kv.split(self.block), ws, strict=True):
                if self.fresh:
                    K.exp_()
                torch.mv(K, v_i, out=out)
                KTu.addmv_(K.T, _scalings(out, part))
            Kvs.append(Kv)
            KTus.append(KTu)
        return torch.stack(Kvs), torch.stack(KTus)

    def cost(self, i: int, f: Tensor, g: Tensor, shift: float) -> float:
        K, v = self.K[i], g.double().exp().to(self.dtype)
        block = max(1, self.block // 2)
        space = torch.empty(min(block, len(K)), K.shape[1], dtype=K.dtype, device=K.device)
        sums = [torch.mv(torch.log(part, out=space[: len(part)]).mul_(part), v) for part in K.split(block)]
        return float(torch.cat(sums).double() @ f.double().exp()) * math.exp(shift)


class LogKernels:
    """log K [B, n, n'] in fp64 for small epsilon, where K leaves the range of floating point.

    The duals are absorbed: with K' = exp(log K + f' + g'), products need no exponential while the duals stay near f',
    g'. When they drift away, or a product underflows, the exact log-sum-exp takes its place, and K' is rebuilt.
    """

    def __init__(self, log_K: Tensor, spread: float) -> None:
        self.log_K, self.spread = log_K, spread
        self.K = aligned(log_K.shape, log_K.dtype, log_K.device)
        self.shape = (log_K.shape[0], log_K.shape[1], log_K.shape[2])
        self.dtype, self.device = log_K.dtype, log_K.device
        self.absorbed: dict[int, tuple[Tensor, Tensor]] = {}

    def sweep(self, g: Tensor, active: Sequence[int], w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = [self._rows(i, g_i) for i, g_i in zip(active, g, strict=True)]
        fs = [-row if w is None else w.log() - row for row in rows]
        columns = [self._columns(i, f) for i, f in zip(active, fs, strict=True)]
        return torch.stack(rows), torch.stack(columns)

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
        if float(drift.abs().max()) < REACH:
            product = torch.mv(self.K[i].T, drift.exp()).log_() - g0
            if product.isfinite().all():
                return product
        return torch.logsumexp(self.log_K[i] + f[:, None], 0)

    def cost(self, i: int, f: Tensor, g: Tensor, shift: float) -> float:
        Q = torch.exp(self.log_K[i] + (f[:, None] + shift) + g)
        return float((Q * self.log_K[i]).sum())


def _scalings(Kv: Tensor, w: Tensor | None) -> Tensor:
    """w / Kv"""
    return Kv.reciprocal() if w is None else w / Kv
