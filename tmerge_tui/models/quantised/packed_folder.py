"""A model folder whose matrices are packed, read one weight at a time."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tmerge_tui.errors import ModelError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.header import TensorInfo
from tmerge_tui.models.quantised.scheme import Scheme, weight_of
from tmerge_tui.models.weight_files import FOREIGN_WEIGHTS

LAYER = re.compile(r"\.(\d+)\.")
DTYPE = torch.bfloat16
PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class PackedFolder:
    """The folder of one model, its weights on this disk or, for the head alone, not yet."""

    dtype, rounded = DTYPE, True

    def __init__(self, folder: Path, name: str, scheme: Scheme) -> None:
        """Raises ValueError for a scheme whose settings are not read here."""
        scheme.check()
        self.folder, self.name, self.scheme = folder, name, scheme

    @property
    def precision(self) -> str:
        return self.scheme.precision

    def write_head(self, folder: Path) -> tuple[str, ...]:
        """Everything but weights."""
        for file in self.folder.iterdir():
            if file.is_file() and not file.name.endswith(FOREIGN_WEIGHTS):
                shutil.copyfile(file, folder / file.name)
        return ()

    def groups(self, head: Path) -> tuple[tuple[str, ...], ...]:
        """Names of weights that are unpacked together: what is outside of layers, then layer by layer."""
        layers: dict[int, list[str]] = {}
        for weight in self._stored():
            found = LAYER.search(weight)
            layers.setdefault(int(found[1]) if found else -1, []).append(weight)
        return tuple(tuple(layers[key]) for key in sorted(layers))

    def make(self, head: Path, group: tuple[str, ...]) -> dict[str, Tensor]:
        """The weights of one group, in bfloat16 where they were packed and as they are where they were not."""
        return {name: self._plain(name) for name in group}

    def check(self, head: Path, written: Sequence[str]) -> None:
        """Names are those of the checkpoint: what is missing is found where it is loaded."""

    def sizes(self, group: tuple[str, ...]) -> list[int]:
        """Entries of each weight of a group; of one whose parts do not tell, two for every stored byte."""
        found = []
        for name in group:
            stored = {part: self._checkpoint.info(full) for part, full in self._stored()[name].items()}
            shape = self.scheme.shape({part: info.shape for part, info in stored.items()}) if len(stored) > 1 else None
            found.append(math.prod(shape) if shape else 2 * stored["weight"].bytes)
        return found

    def _stored(self) -> dict[str, dict[str, str]]:
        """Weight -> part -> name of the stored tensor."""
        if not hasattr(self, "_found"):
            self._checkpoint = Checkpoint(self.folder)
            self._found = by_weight(self._checkpoint.names, self.scheme)
        return self._found

    def _plain(self, name: str) -> Tensor:
        parts = {part: self._checkpoint.read(stored) for part, stored in self._stored()[name].items()}
        if set(parts) == {"weight"} and parts["weight"].dtype in PLAIN:
            return parts["weight"]
        try:
            return self.scheme.plain(parts).to(DTYPE).contiguous()
        except (ValueError, KeyError, RuntimeError, IndexError) as error:
            raise ModelError(
                f"{self.name}: {name} cannot be unpacked: {error}",
                f"a matrix packed as its configuration says ({self.precision})",
                "name the model it was made from",
            ) from error


def by_weight(names: Iterable[str], scheme: Scheme) -> dict[str, dict[str, str]]:
    """Weight -> part -> name of the stored tensor, of all stored `names`."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        place = weight_of(name, scheme)
        if place is not None:
            found.setdefault(place[0], {})[place[1]] = name
    return found


def plain_tensors(
    stored: Mapping[str, TensorInfo], scheme: Scheme, built: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, TensorInfo]:
    """What unpacking will give of the tensors `stored`; `built` are the shapes of the model that is made of its
    configuration, for those whose parts do not tell."""
    made = {}
    for weight, parts in by_weight(stored, scheme).items():
        if set(parts) == {"weight"}:
            made[weight] = stored[parts["weight"]]
            continue
        shape = scheme.shape({part: stored[full].shape for part, full in parts.items()}) or built.get(weight)
        if shape is None or built.get(weight, shape) != shape:
            said = (
                "of no known shape" if shape is None else f"{list(shape)}, and {list(built[weight])} by its config.json"
            )
            raise ModelError(
                f"{name}: {weight} is {said} when it is unpacked",
                f"matrices packed as config.json says ({scheme.precision})",
                "name the model it was made from",
            )
        made[weight] = TensorInfo(next(iter(stored.values())).file, DTYPE, shape, 0, math.prod(shape) * DTYPE.itemsize)
    return made
