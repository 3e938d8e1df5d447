"""Transport problems of known character, and activations without a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tmerge_tui.engine.optimal_transport.cost import zscore
from tmerge_tui.models.layout import Layout, Projection


def make_pair(T: int, n: int, m: int, rank: int = 8, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(X [T, n], Y [T, m]) that share `rank` directions of decaying size under noise, at uneven scales."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shared = draw(T, rank) / torch.arange(1, rank + 1) ** 0.5
    X = shared @ draw(rank, n) + noise * draw(T, n)
    Y = shared @ draw(rank, m) + noise * draw(T, m)
    return X * draw(n).exp() + draw(n), Y * draw(m).exp() + draw(m)


def make_zscores(T: int, n: int, m: int, rank: int = 8, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    X, Y = make_pair(T, n, m, rank, noise, seed)
    return zscore(X), zscore(Y)


def exact_plan(Zx: Tensor, Zy: Tensor, epsilon: float, iterations: int = 50_000) -> Tensor:
    """Q* by the textbook scaling loop in fp64 until nothing moves; independent of the package's solvers."""
    C = 1 - Zx.double().T @ Zy.double()
    K = torch.exp(-C / epsilon)
    n, m = K.shape
    u, v = K.new_ones(n), K.new_ones(m)
    for k in range(iterations):
        Kv = K @ v
        if k % 10 == 0 and k and (u * Kv * n - 1).abs().max() < 1e-12:
            return u[:, None] * K * v
        u = (1 / n) / Kv
        v = (1 / m) / (K.T @ u)
    raise AssertionError("the reference did not converge")


@dataclass
class FakeActivations:
    """The interface of extract.Activations over tensors in memory."""

    key: str
    layout: Layout
    tensors: dict[tuple[int, str], Tensor]
    reads: list[tuple[int, str]] = field(default_factory=list)

    @property
    def layers(self) -> int:
        return self.layout.layers

    @property
    def rows(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def side(self, layer: int, side: str) -> Tensor:
        self.reads.append((layer, side))
        return self.tensors[layer, side]

    def strength(self, layer: int, side: str) -> Tensor:
        return self.side(layer, side).abs().mean(0)


def make_activations(
    name: str, kinds: list[tuple[str, ...]], hidden: int, inner: int, rows: int = 40, seed: int = 0
) -> FakeActivations:
    """`kinds`: the projections of each layer. q, k, v map hidden to inner, o inner to hidden."""
    shapes = {"q": (inner, hidden), "k": (inner, hidden), "v": (inner, hidden), "o": (hidden, inner)}
    projections = tuple(
        Projection(layer, kind, f"layers.{layer}.{kind}", f"layers.{layer}.{kind}.weight", None, *shapes[kind])
        for layer, there in enumerate(kinds)
        for kind in there
    )
    layout = Layout(len(kinds), projections, ())
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 5, generator=torch.Generator().manual_seed(99))
    tensors = {}
    for layer in range(len(kinds)):
        for side in layout.sides(layer, shapes):
            n = layout.width(layer, side)
            assert n is not None
            mix, noise = torch.randn(5, n, generator=generator), torch.randn(rows, n, generator=generator)
            tensors[layer, side] = shared @ mix + 0.5 * noise
    return FakeActivations(name, layout, tensors)
