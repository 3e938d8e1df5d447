"""A model on the Hub before its weights are here: as much of a checkpoint as can be known without them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.headers import read_headers
from tmerge_tui.hub.listing import Listing
from tmerge_tui.models.config import build_on_meta, read_config
from tmerge_tui.models.header import DTYPES, TensorInfo


@dataclass(frozen=True)
class Outline:
    """Names, types and shapes of a listing's tensors; stands in for a `Checkpoint` in `read_facts`."""

    folder: Path
    bytes: int  # of the weight files
    tensors: dict[str, TensorInfo]
    commit: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def fingerprint(self) -> str:
        """Names this outline; not the fingerprint of the checkpoint it will become."""
        return hashlib.sha256(f"outline {self.commit}".encode()).hexdigest()


def outline(listing: Listing, trust_remote_code: bool) -> Outline:
    """From the headers of safetensors files; for PyTorch files, which tell nothing, from the configuration.

    Raises ModelError for types this version does not know, what `read_headers` raises, and for models transformers
    cannot build.
    """
    made = _expected(listing, trust_remote_code) if listing.pickled else _stated(listing)
    return Outline(listing.folder, sum(file.size for file in listing.weights), made, listing.commit)


def _stated(listing: Listing) -> dict[str, TensorInfo]:
    tensors = read_headers(listing)
    odd = next((name for name, tensor in tensors.items() if tensor.dtype not in DTYPES), None)
    if odd is not None:
        raise ModelError(
            f"{listing.name}: {odd} has type {tensors[odd].dtype}",
            f"one of {', '.join(DTYPES)}",
            "use the unquantised model",
        )
    return {
        name: TensorInfo(listing.folder / t.file, DTYPES[t.dtype], t.shape, t.start, t.end)
        for name, t in tensors.items()
    }


def _expected(listing: Listing, trust_remote_code: bool) -> dict[str, TensorInfo]:
    config = read_config(listing.folder, listing.name, trust_remote_code)
    model = build_on_meta(config, listing.name, trust_remote_code)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    file = listing.folder / listing.weights[0].path
    return {
        name: TensorInfo(file, dtype, tuple(tensor.shape), 0, tensor.numel() * dtype.itemsize)
        for name, tensor in model.state_dict().items()
    }
