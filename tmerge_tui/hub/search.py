"""Models and data sets to choose from: on the Hub, and in the local cache. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tmerge_tui.errors import DataError
from tmerge_tui.files import parse_json
from tmerge_tui.hub.errors import client_errors, explained
from tmerge_tui.hub.listing import ANSWER
from tmerge_tui.hub.manifest import WHOLE
from tmerge_tui.hub.patience import patiently

Sort = Literal["downloads", "likes", "recent"]
SORTS: dict[str, Any] = {"downloads": "downloads", "likes": "likes", "recent": "last_modified"}


@dataclass(frozen=True)
class Found:
    """One model or data set that can be chosen; unknown figures are None."""

    name: str  # Hub id, as it goes into the recipe
    origin: Literal["hub", "cache"]
    folder: Path | None = None
    bytes: int | None = None  # of the weights on the Hub, of everything in the cache
    parameters: int | None = None
    downloads: int | None = None
    likes: int | None = None
    licence: str | None = None
    gated: bool = False
    family: str | None = None  # model_type of config.json
    modified: str | None = None  # ISO date


def search_models(query: str = "", sort: Sort = "downloads", limit: int = 20) -> list[Found]:
    """Text-generation models whose name holds `query`. Raises ModelError: no connection, or what the Hub refuses."""
    from huggingface_hub import HfApi

    with explained(query or "search"):
        found = HfApi().list_models(
            search=query or None,
            pipeline_tag="text-generation",
            sort=SORTS[sort],
            limit=limit,
            expand=["downloads", "likes", "gated", "safetensors", "tags", "config", "lastModified"],
        )
        return [_found(info) for info in found]


def search_datasets(query: str = "", sort: Sort = "downloads", limit: int = 20) -> list[Found]:
    """Data sets whose name holds `query`. Raises DataError."""
    from huggingface_hub import HfApi

    with explained(query or "search", DataError, "data set"):
        found = HfApi().list_datasets(
            search=query or None,
            sort=SORTS[sort],
            limit=limit,
            expand=["downloads", "likes", "gated", "tags", "lastModified"],
        )
        return [_found(info) for info in found]


def describe(name: str) -> Found:
    """What the Hub says about org/name or org/name@revision; also of a gated model. Raises ModelError."""
    from huggingface_hub import HfApi

    repo, _, revision = name.partition("@")
    with explained(name):
        api = HfApi()
        info = patiently(lambda: api.model_info(repo, revision=revision or None, files_metadata=True, timeout=ANSWER))
        return _found(info)


def cached_models(query: str = "") -> list[Found]:
    """Whole models in the standard cache, the last used first."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from tmerge_tui.hub.errors import cache_folder

    client_errors()  # no warnings on the terminal
    try:
        repos = scan_cache_dir(cache_folder()).repos
    except (CacheNotFound, OSError):
        return []
    models = [repo for repo in repos if repo.repo_type == "model" and query.lower() in repo.repo_id.lower()]
    found = []
    for repo in sorted(models, key=lambda repo: -repo.last_accessed):
        for revision in sorted(repo.revisions, key=lambda revision: -revision.last_modified):
            names = {file.file_name for file in revision.files}
            if "config.json" in names and any(name in names for pair in WHOLE for name in pair):
                folder = revision.snapshot_path
                found.append(Found(repo.repo_id, "cache", folder, revision.size_on_disk, family=_family(folder)))
                break
    return found


def _found(info: Any) -> Found:
    """Of huggingface_hub's ModelInfo or DatasetInfo."""
    weights = [s.size for s in _siblings(info) if s.rfilename.endswith(".safetensors") and s.size]
    safetensors = getattr(info, "safetensors", None)
    licence = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), None)
    modified = getattr(info, "last_modified", None)
    return Found(
        info.id,
        "hub",
        bytes=sum(weights) or None,
        parameters=safetensors.total if safetensors else None,
        downloads=getattr(info, "downloads", None),
        likes=getattr(info, "likes", None),
        licence=licence,
        gated=bool(getattr(info, "gated", False)),
        family=(getattr(info, "config", None) or {}).get("model_type"),
        modified=modified.date().isoformat() if modified else None,
    )


def _siblings(info: Any) -> Iterable[Any]:
    return getattr(info, "siblings", None) or ()


def _family(folder: Path) -> str | None:
    try:
        return str(parse_json((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
