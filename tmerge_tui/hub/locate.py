"""From what a recipe names to a folder on this disk: local folders, and Hub ids through the standard cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.download import download, download_texts
from tmerge_tui.hub.listing import Listing, list_model, remember
from tmerge_tui.recipe import ModelChoice


@dataclass(frozen=True)
class Located:
    """`pending` lists what has to be downloaded before the folder holds weights; None when it does."""

    name: str  # what the user typed
    folder: Path
    commit: str | None  # of the Hub repository; None for a folder
    pending: Listing | None = None
    note: str = ""  # what the user should know of how it was found


def locate(choice: ModelChoice) -> Located:
    """The folder of a model with all its files, downloaded into the standard cache when something is not there.

    Raises ModelError: no such folder, no such repository, not allowed, or offline and not cached; StorageError.
    """
    found = find(choice)
    if found.pending is not None:
        download(found.pending)
    return Located(found.name, found.folder, found.commit, None, found.note)


def find(choice: ModelChoice) -> Located:
    """As `locate`, but of a Hub model only the small files are downloaded: configuration, tokenizer, card."""
    if choice.is_folder:
        folder = Path(choice.model).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"no model folder {folder}",
                "a folder with config.json and safetensors weights",
                "check the path, or give a Hub id such as org/name",
            )
        return Located(choice.model, folder, None)
    listing = list_model(choice.model, choice.revision, choice.trust_remote_code)
    download_texts(listing)
    remember(listing)
    pending = listing if listing.missing else None
    return Located(listing.name, listing.folder, listing.commit, pending, listing.note)
