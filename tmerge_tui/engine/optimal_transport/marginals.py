"""What the rows and the columns of a plan sum to: a [n] and b [n'], uniform unless given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tmerge_tui.errors import NumericsError

SUM = 1e-6  # how far a marginal's sum may be from 1: what fp32 makes of a million entries


@dataclass(frozen=True)
class Marginal:
    """a [n], positive and of sum 1, kept as its density n a (fp64); None is the uniform one, whose density is 1."""

    size: int
    density: Tensor | None = None

    @classmethod
    def of(cls, a: Tensor | None, size: int, device: torch.device, name: str = "a") -> Marginal:
        """Of a vector [size] of any precision; None is uniform. Raises NumericsError for what is no marginal."""
        if a is None:
            return cls(size)
        a = a.detach().to(device).double()
        if a.shape != (size,):
            raise NumericsError(f"marginal {name} has the shape {list(a.shape)}", f"[{size}]", "one entry a channel")
        wrong = (~(a.isfinite() & (a > 0))).nonzero().flatten().tolist()
        if wrong:
            found = f"marginal {name}: {len(wrong)} of {size} entries are not positive, first a[{wrong[0]}]"
            raise NumericsError(f"{found} = {float(a[wrong[0]]):g}", "positive mass", "leave out channels without mass")
        total = float(a.sum())
        if abs(total - 1) > SUM:
            raise NumericsError(f"marginal {name} sums to {total:g}", "1", "divide it by its sum")
        return cls(size, a * (size / total))

    @property
    def log(self) -> float | Tensor:
        """log a, one number for all channels where it is uniform."""
        uniform = -math.log(self.size)
        return uniform if self.density is None else self.density.log() + uniform

    @property
    def spread(self) -> float:
        """max - min of log a."""
        return 0.0 if self.density is None else float(self.density.max().log() - self.density.min().log())

    @property
    def sharpest(self) -> float:
        """1 over its smallest entry: by how much an error of the plan is larger when measured against the marginal."""
        return self.size if self.density is None else self.size / float(self.density.min())

    def vector(self, like: Tensor) -> Tensor:
        """a itself, in the precision and on the device of `like`."""
        return (
            like.new_full((self.size,), 1 / self.size) if self.density is None else (self.density / self.size).to(like)
        )

    def errors(self, sums: Tensor) -> Tensor:
        """|Q1 / a - 1| [n] from Q1 [n]."""
        relative = sums * self.size if self.density is None else sums * self.size / self.density
        return (relative - 1).abs()

    def l1(self, errors: Tensor) -> Tensor:
        """sum |Q1 - a| [B] from relative errors [B, n]: their mean, each with its share of the mass."""
        return self._weighed(errors).mean(1)

    def worst(self, errors: Tensor) -> Tensor:
        """max |Q1 - a| [B] from relative errors [B, n]."""
        return self._weighed(errors).amax(1) / self.size

    def _weighed(self, errors: Tensor) -> Tensor:
        return errors if self.density is None else errors * self.density
