"""The autoencoder of weights: a chunk is a token, a window of chunks of one matrix a sequence.

Encoder and decoder are pre-norm Transformers with rotary positions and SwiGLU. Both are told the kind of the matrix
and its share of the depth, never which model it is of: one decoder is to read what was encoded of either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4
CALM = -5.0  # log-variance that noise begins with
LOG_VARIANCE = 10.0  # it is kept between plus and minus this
DEPTHS = 64  # steps of the depth that are told apart


@dataclass(frozen=True)
class Shape:
    c: int  # numbers of a chunk
    latent: int  # numbers of its latent
    width: int
    blocks: int
    kinds: int

    @property
    def parameters(self) -> int:
        """Of matrices, which is all that counts: attention 4 d^2, SwiGLU 12 d^2 a block."""
        ends = 2 * self.c + 3 * self.latent + 2 * (DEPTHS + self.kinds)
        return 2 * self.blocks * 16 * self.width**2 + ends * self.width


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate_up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, width], turn complex [T, width / HEADS / 2], mask bool [B, 1, 1, T]."""
        B, T, width = x.shape
        q, k, v = (part.transpose(1, 2) for part in self.qkv(self.before(x)).view(B, T, 3, HEADS, -1).unbind(2))
        mixed = F.scaled_dot_product_attention(_turned(q, turn), _turned(k, turn), v, attn_mask=mask)
        x = x + self.o(mixed.transpose(1, 2).reshape(B, T, width))
        gate, up = self.gate_up(self.between(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Stack(nn.Module):
    """What encoder and decoder are: [B, T, d_in] -> [B, T, d_out], told kind and depth of the matrix."""

    def __init__(self, d_in: int, d_out: int, shape: Shape) -> None:
        super().__init__()
        self.enter = nn.Linear(d_in, shape.width)
        self.depth, self.kind = nn.Embedding(DEPTHS, shape.width), nn.Embedding(shape.kinds, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width)
        self.leave = nn.Linear(shape.width, d_out)

    def forward(self, x: Tensor, depth: Tensor, kind: Tensor, mask: Tensor) -> Tensor:
        h = self.enter(x) + (self.depth(depth) + self.kind(kind)).unsqueeze(1)
        turn = _turns(x.shape[1], h.shape[-1] // HEADS, x.device)
        for block in self.blocks:
            h = block(h, turn, mask[:, None, None, :])
        return self.leave(self.norm(h))


class Vae(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Stack(shape.c, 2 * shape.latent, shape)
        self.decoder = Stack(shape.latent, shape.c, shape)
        with torch.no_grad():  # noise begins small, whatever the chunk: the first phase does not train it
            self.encoder.leave.weight[shape.latent :].zero_()
            self.encoder.leave.bias[shape.latent :].fill_(CALM)

    def encode(self, x: Tensor, depth: Tensor, kind: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log-variance) [B, T, latent] of chunks [B, T, c]; depth, kind int64 [B]; mask bool [B, T]."""
        mean, spread = self.encoder(x, depth, kind, mask).float().chunk(2, -1)
        return mean, spread.clamp(-LOG_VARIANCE, LOG_VARIANCE)

    def decode(self, z: Tensor, depth: Tensor, kind: Tensor, mask: Tensor) -> Tensor:
        """Chunks [B, T, c] of latents [B, T, latent]."""
        return self.decoder(z, depth, kind, mask).float()

    def forward(
        self, x: Tensor, depth: Tensor, kind: Tensor, mask: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(chunks as decoded [B, T, c], KL(q(z | x) || N(0, 1)) of every latent number [B, T, latent]).

        noise: standard normal [B, T, latent]; None decodes the mean.
        """
        mean, spread = self.encode(x, depth, kind, mask)
        z = mean if noise is None else mean + noise * (spread / 2).exp()
        divergence = (mean.square() + spread.exp() - 1 - spread) / 2
        return self.decode(z, depth, kind, mask), divergence


def depth_step(layer: int, layers: int) -> int:
    """Which of DEPTHS steps a layer stands at: the same for two models' layers at the same share of their depth."""
    return round(layer * (DEPTHS - 1) / max(layers - 1, 1))


def _turns(length: int, width: int, device: torch.device) -> Tensor:
    """complex64 [length, width / 2]: rotary positions."""
    speed = 10_000.0 ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * speed
    return torch.polar(torch.ones_like(angle), angle)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
