"""What a model on the Hub is, before its weights are downloaded: configuration, shapes and types, licence, size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.download import download_texts
from tmerge_tui.hub.headers import read_headers
from tmerge_tui.hub.listing import list_model
from tmerge_tui.hub.search import describe
from tmerge_tui.recipe import ModelChoice


@dataclass(frozen=True)
class HubFacts:
    """No torch: `engine.check` makes the full facts, with projections, of the same headers."""

    name: str
    commit: str
    family: str | None  # model_type
    layers: int | None
    hidden: int | None
    parameters: int
    dtypes: dict[str, int]  # parameters of each type as safetensors names it, the most frequent first
    shapes: dict[str, tuple[int, ...]]  # of every tensor
    bytes: int  # weight files
    missing_bytes: int  # what a run would have to download
    licence: str | None
    gated: bool
    base: str | None  # of a LoRA adapter: the model it was made for


def read_hub_facts(choice: ModelChoice) -> HubFacts:
    """Kilobytes are read. Raises ModelError: no access (gated), no such model, no safetensors, no connection."""
    listing = list_model(choice.model, choice.revision, choice.trust_remote_code)
    download_texts(listing)
    headers = read_headers(listing)
    config = _json(listing.folder / ("adapter_config.json" if listing.is_adapter else "config.json"))
    text = config.get("text_config") or config
    said = None if listing.note else describe(listing.name)
    return HubFacts(
        name=listing.name,
        commit=listing.commit,
        family=config.get("model_type"),
        layers=text.get("num_hidden_layers", text.get("n_layer")),
        hidden=text.get("hidden_size", text.get("n_embd")),
        parameters=headers.parameters,
        dtypes=headers.dtypes,
        shapes={name: tensor.shape for name, tensor in headers.tensors.items()},
        bytes=sum(file.size for file in listing.weights),
        missing_bytes=sum(file.size for file in listing.missing),
        licence=said.licence if said else None,
        gated=said.gated if said else False,
        base=config.get("base_model_name_or_path") if listing.is_adapter else None,
    )


def _json(path: Any) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = None
    if not isinstance(data, dict):
        raise ModelError(f"{path.name} cannot be read", "a JSON object", "choose another model")
    return data
