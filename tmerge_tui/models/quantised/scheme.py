"""What a way of packing weights in a model folder says: which stored tensors are one weight, and how they become it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

Settings = Mapping[str, Any]  # quantization_config of config.json


class Scheme(Protocol):
    """`parts` are the endings of stored tensors' names that belong to one weight, `dropped` those of no use here."""

    parts: ClassVar[tuple[str, ...]]
    dropped: ClassVar[tuple[str, ...]]

    @property
    def precision(self) -> str: ...  # format and bits, in words

    def check(self) -> None:
        """Raises ValueError for settings that are not read here."""

    def shape(self, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
        """[out, in] of the weight whose parts have these shapes; None when only their content tells."""

    def plain(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight [out, in], float32, of a module with these parts."""


def weight_of(name: str, scheme: Scheme) -> tuple[str, str] | None:
    """(the weight that a stored tensor belongs to, which part it is); None for one of no use."""
    if name.endswith(tuple(f".{ending}" for ending in scheme.dropped)):
        return None
    for ending in sorted(scheme.parts, key=len, reverse=True):
        if name.endswith(f".{ending}"):
            return f"{name.removesuffix(ending)}weight", ending
    return name, "weight"
