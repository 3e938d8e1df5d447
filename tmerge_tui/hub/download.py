"""What is missing in the cache, and bringing it there: small files first, weights when everything else is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tmerge_tui.hub.errors import cache_folder, explained
from tmerge_tui.hub.fetch import Advance, fetch
from tmerge_tui.hub.listing import Listing, RemoteFile
from tmerge_tui.hub.snapshot import WORKERS, bring
from tmerge_tui.quantities import size


def download_texts(listing: Listing) -> None:
    """Everything but weights: configuration, tokenizer, card. Raises ModelError (gated and so on), StorageError."""
    weights = {file.path for file in listing.weights}
    if any(file.path not in weights for file in listing.missing):
        bring(listing.repo, listing.commit, [f.path for f in listing.files if f.path not in weights], listing.name)


def download(
    listing: Listing, advance: Advance = lambda count, fresh: None, arrived: Callable[[str], None] = lambda path: None
) -> Path:
    """The folder of the commit, with all its files. `advance` gets the bytes of missing files as they arrive (from
    several threads), `arrived` the name of each file that is whole.

    Bytes that an earlier, interrupted download has left count at once. Nothing is ever stored twice: the files lie in
    the standard cache. Raises ModelError, StorageError.
    """
    missing = listing.missing
    if not missing:
        return listing.folder

    def receive(file: RemoteFile) -> None:
        fetch(listing, file, advance)
        arrived(file.path)

    with explained(listing.name), ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(receive, file) for file in missing]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    bring(listing.repo, listing.commit, [file.path for file in listing.files], listing.name)
    return listing.folder


def lacking_room(byte_count: int) -> str | None:
    """A problem in words when the disk of the cache has no room for so many bytes."""
    folder = Path(cache_folder())
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if byte_count <= free:
        return None
    return (
        f"cache: {size(free)} free at {folder}, {size(byte_count)} have to be downloaded; free space, "
        f"or set HF_HOME to a folder on another disk"
    )
