"""What the check found missing in the cache is downloaded, with progress by the byte, and the models opened again."""

from __future__ import annotations

import threading
from dataclasses import replace

from tmerge_tui.engine.check import Party, Prepared, open_party
from tmerge_tui.engine.progress import Progress
from tmerge_tui.events import Emit, StageFinished
from tmerge_tui.hub.download import download
from tmerge_tui.hub.listing import Listing
from tmerge_tui.recipe import Recipe

STAGE = "download"
LABEL = "Download the models"
SHARE = 0.25  # of the whole run, as the progress bar weighs it


def needs_stage(recipe: Recipe) -> bool:
    """Whether a model comes from the Hub: only then is there anything to announce."""
    return not (recipe.source.is_folder and recipe.target.is_folder)


def download_models(prepared: Prepared, emit: Emit) -> Prepared:
    """`prepared` with all weights on this disk.

    A killed download goes on where it was. Raises ModelError, StorageError.
    """
    if not needs_stage(prepared.recipe):
        return prepared
    pending = {p.located.folder: p.located.pending for p in (prepared.source, prepared.target) if p.located.pending}
    if not pending:
        emit(StageFinished(STAGE, 0.0, "cached"))
        return prepared
    _fetch(list(filter(None, pending.values())), emit)

    def whole(party: Party) -> Party:
        return open_party(party.role, replace(party.located, pending=None), party.facts.trust_remote_code)

    return replace(prepared, source=whole(prepared.source), target=whole(prepared.target))


def _fetch(listings: list[Listing], emit: Emit) -> None:
    files = [file for listing in listings for file in listing.missing]
    names = " and ".join(listing.name for listing in listings)
    lock, arrived = threading.Lock(), 0
    with Progress(emit, STAGE, f"Downloading {names}", sum(file.size for file in files), "bytes") as progress:

        def note() -> str:
            return f"{arrived} of {len(files)} files"

        def advance(count: int, fresh: bool) -> None:
            with lock:  # several files at a time
                if fresh:
                    progress.advance(count, note())
                else:
                    progress.skip(count)

        def count_file(path: str) -> None:
            nonlocal arrived
            with lock:
                arrived += 1
                progress.advance(0, note())

        for listing in listings:
            download(listing, advance, count_file)
