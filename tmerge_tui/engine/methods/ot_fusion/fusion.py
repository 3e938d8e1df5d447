"""What was carried, read back from its pieces, and mixed into the target: W + alpha (moved - W) over all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from tmerge_tui.engine.methods.ot_fusion.carry import Moved
from tmerge_tui.engine.weights.update import Change
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.run_folder import RunDir, key, open_piece


@dataclass(frozen=True)
class Carried:
    """The pieces of one pass: `fused`, or `permuted`, its placebo. Reading raises StorageError."""

    paths: tuple[Path, ...]

    @property
    def key(self) -> str:
        return key("ot-carried", sorted(path.name for path in self.paths))

    @cached_property
    def meta(self) -> dict[Path, dict[str, Any]]:
        found = {}
        for path in self.paths:
            with open_piece(path) as file:
                found[path] = json.loads(file.metadata()["meta"])
        return found

    @cached_property
    def parts(self) -> dict[str, str]:
        """Tensor of the target's file -> the part of the model it belongs to."""
        return {name: part for meta in self.meta.values() for name, part in meta["tensors"].items()}

    def collected(self, name: str) -> list[Any]:
        """The list of that name of every piece, joined."""
        return [line for path in self.paths for line in self.meta[path].get(name, [])]

    def read(self, name: str) -> tuple[Tensor, Tensor | None]:
        """(values fp32, the rows int64 that they are; None: all)"""
        path = next(path for path, meta in self.meta.items() if name in meta["tensors"])
        with open_piece(path) as file:
            index = f"{name}:index"
            there = index in file.keys()  # noqa: SIM118
            return file.get_tensor(name), file.get_tensor(index) if there else None


def save(run: RunDir, path: Path, moved: Sequence[Moved], permuted: bool, **meta: Any) -> None:
    """One piece: the tensors as they are moved, or their placebos, and what else is to be known."""
    tensors: dict[str, Tensor] = {}
    for each in moved:
        values = each.permuted if permuted else each.values
        assert values is not None
        tensors[each.name] = values
        if each.index is not None:
            tensors[f"{each.name}:index"] = each.index
    run.save(path, tensors, {"tensors": {each.name: each.part for each in moved}, **meta})


@dataclass(frozen=True, eq=False)
class OtUpdate:
    """The merge at one strength; transported=False: the shrink placebo, every matrix of it times 1 - alpha."""

    carried: Carried
    target: Checkpoint
    alpha: float
    shares: Mapping[str, float] | None = None  # of alpha, by part; a part that is not named is left out
    transported: bool = True

    @property
    def key(self) -> tuple[Any, ...]:
        shares = None if self.shares is None else sorted(self.shares.items())
        return not self.transported, "ot_fusion", self.carried.key, self.alpha, shares

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            name for name in self.target.names if self._share(name) and (self.transported or self._matrix(name))
        )

    def change(self, name: str, stored: Tensor) -> Change:
        values, index = self.carried.read(name)
        own = stored if index is None else stored.index_select(0, index.to(stored.device))
        own = own.to(values.dtype) if own.element_size() < values.element_size() else own
        moved = values.to(own) if self.transported else own.new_zeros(())
        mixed = own.lerp(moved.expand_as(own), self.alpha * self._share(name))
        return Change(mixed) if index is None else Change(mixed, 0, index)

    def _share(self, name: str) -> float:
        part = self.carried.parts.get(name)
        if part is None:
            return 0.0
        return 1.0 if self.shares is None else self.shares.get(part, 0.0)

    def _matrix(self, name: str) -> bool:
        return len(self.target.info(name).shape) > 1
