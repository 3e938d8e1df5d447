"""Something of each of the two models, where both are handed on together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True, kw_only=True)
class Pair(Generic[T_co]):
    """The target's and the source's, by name: the two cannot change places by position."""

    target: T_co
    source: T_co

    def each(self, make: Callable[[T_co], U]) -> Pair[U]:
        """What `make` makes of either."""
        return Pair(target=make(self.target), source=make(self.source))

    def items(self) -> tuple[tuple[str, T_co], tuple[str, T_co]]:
        """(role, its own), the target first."""
        return ("target", self.target), ("source", self.source)
