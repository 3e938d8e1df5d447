"""What is in a training loss beside the next token: terms, each a file of its own.

L = (1 - sum of the weights that replace) CE + sum over terms of weight * loss / count        in nats
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class Term(Protocol):
    """One term of the loss. A new one is a file with a class like this and a name in `arms.Arm.terms`."""

    weight: float
    replaces: bool  # whether its weight is taken from the next token's

    def watching(self) -> AbstractContextManager[None]:
        """Around the forward pass whose outputs `loss` will see."""

    def loss(self, batch: Mapping[str, Any], logits: Tensor) -> tuple[Tensor, int]:
        """(sum of its loss, what it is the sum over); logits [B, T, V] are the student's. Count 0: nothing to say."""
