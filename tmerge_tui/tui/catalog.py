"""Where models come from: the Hub, the local cache, a folder. Blocking calls, run in threads; no torch.

Tokens are read by huggingface_hub from where its own login left them and are never shown. Being offline is said within
seconds: the Hub is asked once for a sign of life before a call that would retry for half a minute.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.errors import explained, scrub

PATIENCE = 4.0  # seconds the Hub may take to answer a sign of life
FRESH = 60.0  # seconds an answer stays good
SULK = 8.0  # seconds after a failure during which nobody is made to wait for the next one
TEXT_MODELS = "text-generation"


@dataclass(frozen=True)
class Found:
    """One model that can be chosen; unknown figures are None."""

    name: str  # Hub id or folder, as it goes into the recipe
    origin: str  # "hub" | "cache" | "folder"
    folder: Path | None = None
    bytes: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    licence: str | None = None
    gated: bool = False
    family: str | None = None


class OfflineError(ModelError):
    """The Hub cannot be reached."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the Hub cannot be reached ({reason})",
            "a connection to the Hugging Face Hub",
            "choose a cached model or a folder",
        )


_last_seen = 0.0
_last_failure: tuple[float, OfflineError] | None = None


def search(query: str, limit: int = 20) -> list[Found]:
    """Text-generation models on the Hub whose name holds `query`, most downloaded first.

    Raises OfflineError at once when there is no connection, ModelError for what the Hub refuses.
    """
    from huggingface_hub import HfApi

    _knock()
    with explained(query):
        found = HfApi().list_models(
            search=query,
            pipeline_tag=TEXT_MODELS,
            sort="downloads",
            limit=limit,
            expand=["downloads", "gated", "safetensors", "tags", "config"],
        )
        return [_from_info(info) for info in found]


def describe(name: str) -> Found:
    """What the Hub says about one model, without downloading weights. Raises OfflineError, ModelError."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    repo, _, revision = name.partition("@")
    with explained(name):
        validate_repo_id(repo)
        _knock()
        return _from_info(HfApi().model_info(repo, revision=revision or None, files_metadata=True))


def cached(query: str = "") -> list[Found]:
    """Models in the standard cache with a configuration and weights, newest first, filtered by `query`."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    found = []
    for repo in sorted(repos, key=lambda r: -r.last_accessed):
        if repo.repo_type != "model" or query.lower() not in repo.repo_id.lower():
            continue
        for revision in sorted(repo.revisions, key=lambda r: -r.last_modified):
            names = {file.file_name for file in revision.files}
            if "config.json" in names and any(n.endswith(".safetensors") for n in names):
                folder = revision.snapshot_path
                found.append(Found(repo.repo_id, "cache", folder, revision.size_on_disk, family=_family(folder)))
                break
    return found


def open_folder(path: str | Path) -> Found:
    """A model folder. Raises ModelError when it is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}", "a folder with config.json and weights", "check the path")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json",
            "a model folder: config.json beside .safetensors files",
            "open the folder that holds them",
        )
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} has no .safetensors weights",
            "a checkpoint in safetensors",
            "convert it once: load it in transformers and save_pretrained()",
        )
    return Found(str(path), "folder", folder, sum(f.stat().st_size for f in weights), family=_family(folder))


def resolve(name: str) -> Found:
    """What a typed name means: a folder, else a cached model, else what the Hub says. Raises ModelError."""
    from tmerge_tui.recipe import is_folder

    if is_folder(name):
        return open_folder(name)
    return in_cache(name) or describe(name)


def here(name: str) -> Found | None:
    """The model of this name if it is on this machine, without asking the Hub."""
    from tmerge_tui.recipe import is_folder

    try:
        return open_folder(name) if is_folder(name) else in_cache(name)
    except ModelError:
        return None


def in_cache(name: str) -> Found | None:
    """The cached model of exactly this id, if there is one."""
    return next((found for found in cached(name) if found.name == name), None)


def login() -> str:
    """Who the Hub takes this machine for, without asking it: a token is there or not."""
    from huggingface_hub import get_token

    return "token found" if get_token() else "not logged in"


def _knock() -> None:
    """Raises OfflineError unless the Hub has answered within the last minute or answers now."""
    global _last_seen, _last_failure
    import httpx2
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are warnings on stderr, which is the screen
    if _last_seen and time.monotonic() - _last_seen < FRESH:
        return
    if _last_failure is not None and time.monotonic() - _last_failure[0] < SULK:
        raise _last_failure[1]
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except OfflineModeIsEnabled as error:
        raise OfflineError("HF_HUB_OFFLINE is set") from error
    except (httpx2.HTTPError, OSError) as error:
        failure = OfflineError(scrub(re.sub(r"^\[Errno -?\d+\] ", "", str(error))) or type(error).__name__)
        _last_failure = (time.monotonic(), failure)
        raise failure from error
    _last_seen, _last_failure = time.monotonic(), None


def _from_info(info: Any) -> Found:
    """A Found from huggingface_hub's ModelInfo."""
    safetensors = getattr(info, "safetensors", None)
    licence = next((t.removeprefix("license:") for t in info.tags or [] if t.startswith("license:")), None)
    sizes = [s.size for s in info.siblings or [] if s.rfilename.endswith(".safetensors") and s.size]
    config = getattr(info, "config", None) or {}
    return Found(
        info.id,
        "hub",
        bytes=sum(sizes) or None,
        parameters=safetensors.total if safetensors else None,
        downloads=getattr(info, "downloads", None),
        licence=licence,
        gated=bool(getattr(info, "gated", False)),
        family=config.get("model_type"),
    )


def _family(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return None
