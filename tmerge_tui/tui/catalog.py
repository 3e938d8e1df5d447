"""Where models and data sets come from: the Hub, the local cache, a folder. Blocking calls, run in threads; no torch.

Tokens are read by huggingface_hub from where its own login left them and are never shown. Being offline is said within
seconds: the Hub is asked once for a sign of life before a call that would retry for half a minute.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.errors import explained, scrub

PATIENCE = 4.0  # seconds the Hub may take to answer a sign of life
FRESH = 60.0  # seconds an answer stays good
SULK = 8.0  # seconds after a failure during which nobody is made to wait for the next one
HUB_PAGE = re.compile(
    r"^(https?://)?(www\.)?(huggingface\.co|hf\.co)/(datasets/)?(?P<id>[\w.-]+/[\w.-]+)"
    r"(/(tree|blob|resolve)/(?P<revision>[\w.-]+)(/(?P<file>[^?#]+\.gguf))?)?"
)


@dataclass(frozen=True)
class Found:
    """One model or data set that can be chosen; unknown figures are None."""

    name: str  # Hub id or folder, as it goes into the recipe
    origin: str  # "hub" | "cache" | "folder"
    folder: Path | None = None
    bytes: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    licence: str | None = None
    gated: bool = False
    family: str | None = None
    modified: str | None = None  # ISO date


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
    from tmerge_tui.hub.search import search_models

    _knock()
    return [_ours(found) for found in search_models(query, limit=limit)]


def search_datasets(query: str, limit: int = 20) -> list[Found]:
    """Data sets on the Hub whose name holds `query`, most downloaded first. Raises OfflineError, DataError."""
    from tmerge_tui.hub.search import search_datasets as ask

    _knock()
    return [_ours(found) for found in ask(query, limit=limit)]


def describe(name: str) -> Found:
    """What the Hub says about one model, without downloading weights. Raises OfflineError, ModelError."""
    from huggingface_hub.utils import validate_repo_id

    from tmerge_tui.hub.search import describe as ask
    from tmerge_tui.recipe import ModelChoice, hub_file

    choice = ModelChoice(model=name)
    repo, _ = hub_file(choice.model)
    with explained(name):
        validate_repo_id(repo)
    _knock()
    return _ours(ask(repo + (f"@{choice.revision}" if choice.revision else "")))


def cached(query: str = "") -> list[Found]:
    """Models in the standard cache with a configuration and weights, filtered by `query`."""
    from tmerge_tui.hub.search import cached_models

    return [_ours(found) for found in cached_models(query)]


def recent(query: str = "") -> list[Found]:
    """Models of the runs that this machine has made, newest first, whose name holds `query`; folders that are there."""
    from tmerge_tui.worker.summary import summaries

    names = dict.fromkeys(name for run in summaries() for name in (run.source, run.target) if name != "?")
    return [
        Found(name, "folder", Path(name), 1)
        for name in names
        if query.lower() in name.lower() and ((Path(name) / "config.json").is_file() or Path(name).is_file())
    ]


def here(query: str = "") -> list[Found]:
    """What can be taken without a network: cached models, and folders that earlier runs took."""
    return [*cached(query), *recent(query)]


def tidy(text: str) -> str:
    """A name as it is pasted: without quotes and blanks, a page of the Hub as its id, a file:// address as its path."""
    name = text.strip().strip("'\"").strip()
    if name.startswith("file://"):
        return unquote(name.removeprefix("file://").removeprefix("localhost"))
    page = HUB_PAGE.match(name)
    if page is None:
        return name
    revision, file = page["revision"], page["file"]
    return (
        page["id"] + (f":{unquote(file)}" if file else "") + (f"@{revision}" if revision and revision != "main" else "")
    )


def open_folder(path: str | Path) -> Found:
    """A model folder, or a GGUF file. Raises ModelError when it is none."""
    from tmerge_tui.recipe import is_gguf

    folder = Path(path).expanduser()
    if folder.is_file() and is_gguf(folder):
        return Found(str(path), "folder", folder, folder.stat().st_size, family="GGUF")
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}", "a folder with config.json and weights", "check the path")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ModelError(
            f"{folder} has no config.json",
            "a model folder: config.json beside .safetensors files",
            "open the folder that holds them",
        )
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights:
        raise ModelError(
            f"{folder} has no weights",
            "model.safetensors, its shards, or pytorch_model.bin",
            "open the folder that holds them",
        )
    return Found(str(path), "folder", folder, sum(f.stat().st_size for f in weights), family=_family(folder))


def resolve(name: str) -> Found:
    """What a typed name means: a folder, else a cached model, else what the Hub says. Raises ModelError."""
    from tmerge_tui.recipe import is_folder

    if is_folder(name):
        return open_folder(name)
    return in_cache(name) or replace(describe(name), name=name)  # as typed: with its @revision


def model_args(found: Found) -> dict[str, Any]:
    """The model as the helper process takes it."""
    return {"name": found.name, "folder": None if found.folder is None else str(found.folder)}


def in_cache(name: str) -> Found | None:
    """The cached model of exactly this id, if there is one and all its files are there."""
    from tmerge_tui.hub.listing import cached_listing
    from tmerge_tui.recipe import ModelChoice, hub_file

    choice = ModelChoice(model=name)
    repo, file = hub_file(choice.model)
    if file is not None:
        known = cached_listing(repo, choice.revision, False, file)
        whole = known is not None and not known.missing
        return Found(name, "cache", None, known.weights[0].size, family="GGUF") if known and whole else None
    found = next((found for found in cached(name) if found.name == name), None)
    listing = None if found is None else cached_listing(name, None, code=False)
    return None if listing is not None and listing.missing else found


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


def _ours(found: Any) -> Found:
    """From the Found of hub.search, which knows no folders."""
    return Found(**{field.name: getattr(found, field.name) for field in fields(Found)})


def _family(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return None
