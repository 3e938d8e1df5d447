"""A merge as tensor updates: which tensors of the target's file change, and into what.

Export, install, residual and evaluator know nothing else of a merge. An update lies on disk; one tensor of it is in
memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tmerge_tui.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Change:
    """New entries of one stored tensor: all of it, or those at `index` along `dim`."""

    values: Tensor  # fp32 or better, in the orientation of the file
    dim: int | None = None
    index: Tensor | None = None  # int64

    def applied(self, stored: Tensor) -> Tensor:
        """The whole tensor after the change, in fp32 or better; `stored` stays as it is."""
        new = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
        if self.dim is None or self.index is None:
            return new.copy_(self.values)
        return new.index_copy_(self.dim, self.index.to(new.device), self.values.to(new))


class Update(Protocol):
    """A merge at one strength, a placebo, or a training."""

    @property
    def target(self) -> Checkpoint:
        """The checkpoint it changes."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Plain values: whether it is a placebo that is never written, then what names its content."""

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors of the target's file that change. Raises ModelError when they cannot be told apart."""

    def change(self, name: str, stored: Tensor) -> Change:
        """What becomes of one of `names`; `stored` is the target's own tensor, in any float type, on any device."""
