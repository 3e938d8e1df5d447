"""A model on the Hub before its weights are here: as much of a checkpoint as its headers tell."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.headers import Headers, read_headers
from tmerge_tui.hub.listing import Listing
from tmerge_tui.models.header import DTYPES, TensorInfo


class Outline:
    """Names, types and shapes of a listing's tensors. Raises ModelError for types this version does not know."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.folder: Path = listing.folder
        self._headers: Headers = read_headers(listing)
        odd = next((t for t in self._headers.tensors.items() if t[1].dtype not in DTYPES), None)
        if odd is not None:
            raise ModelError(
                f"{listing.name}: {odd[0]} has type {odd[1].dtype}",
                f"one of {', '.join(DTYPES)}",
                "use the unquantised model",
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self._headers.tensors)

    @property
    def bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.size for file in self.listing.weights)

    def info(self, name: str) -> TensorInfo:
        tensor = self._headers.tensors[name]
        return TensorInfo(self.folder / tensor.file, DTYPES[tensor.dtype], tensor.shape, tensor.start, tensor.end)

    def fingerprint(self) -> str:
        """Names this outline; not the fingerprint of the checkpoint it will become."""
        return hashlib.sha256(f"{self.listing.commit} {sorted(self._headers.sha256.items())}".encode()).hexdigest()
