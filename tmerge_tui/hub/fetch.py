"""One file into the standard cache; after a cut connection or a killed process it goes on where it was.

The Hub's client throws a partial file away when its process ends, so weights are fetched here: into
`blobs/<etag>.tmerge.part`, hashed on the way, renamed to `blobs/<etag>` when the hash is right, or straight to its name
in the snapshot where there are no symbolic links (Windows, for most users). From there on the cache is as the client
itself would have left it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.listing import Listing, RemoteFile
from tmerge_tui.hub.patience import LONGEST, retry_after, retryable
from tmerge_tui.system import insist

CHUNK = 1 << 20  # bytes hashed at a time
TRIES = 6  # in a row without a single byte
PAUSE = 0.5  # seconds after the first fruitless try; doubles, up to 8


Advance = Callable[[int, bool], None]  # bytes, and whether they came over the line just now


def fetch(listing: Listing, file: RemoteFile, advance: Advance) -> None:
    """Brings `file` of a listing into the cache; `advance` gets bytes as they are there (found or received),
    and a negative count when some have to be fetched again.

    Raises what the client raises, and ModelError when the file arrives damaged twice.
    """
    from huggingface_hub.file_download import are_symlinks_supported
    from huggingface_hub.utils import WeakFileLock

    blob = listing.storage / "blobs" / file.etag
    lock = listing.storage.parent / ".locks" / listing.storage.name / f"{file.etag}.lock"
    place = blob if are_symlinks_supported(listing.storage) else listing.folder / file.path
    for folder in (blob.parent, place.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the client's own lock: two runs fetch a file once
        if blob.is_file() or place.is_file():
            advance(file.size, False)
            return
        part = blob.with_name(f"{file.etag}.tmerge.part")
        for again in (True, False):
            digest = _receive(listing, file, part, advance)
            if digest == file.etag:
                insist(lambda: part.replace(place))
                return
            part.unlink()
            advance(-file.size, False)
            if not again:
                break
    raise ModelError(
        f"{listing.name}: {file.path} arrived damaged twice (its hash is not the one the Hub states)",
        f"{len(file.etag) * 4}-bit hash {file.etag[:12]}...",
        "check the connection, or a proxy that changes content; then run the same command",
    )


def _receive(listing: Listing, file: RemoteFile, part: Path, advance: Advance) -> str:
    """Completes `part`; the hash of its content as the Hub names blobs."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    digest = _digest(file)
    done, fruitless = _kept(part, file.size, digest), 0
    advance(done, False)
    while done < file.size:
        before, wait = done, 0.0
        try:
            with _answer(listing, file, done) as response:
                if done and response.status_code != 206:  # the server does not do ranges: all over again
                    part.unlink()
                    advance(-done, False)
                    done, before, digest = 0, 0, _digest(file)
                with open(part, "ab", buffering=0) as stream:  # what a kill leaves behind is on disk
                    for chunk in response.iter_bytes():
                        stream.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        advance(len(chunk), True)
        except HfHubHTTPError as error:
            wait = retry_after(error.response)
            if not retryable(error.response.status_code) or wait > LONGEST or fruitless + 1 >= TRIES:
                raise
        except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError):
            if fruitless + 1 >= TRIES and done == before:
                raise
        fruitless = 0 if done > before else fruitless + 1
        if done < file.size and fruitless >= TRIES:
            raise httpx2.ReadError(f"{file.path}: the connection ends before the file does")
        if done < file.size and fruitless:
            time.sleep(max(wait, min(PAUSE * 2 ** (fruitless - 1), 8.0)))
    if done > file.size:  # never the file that was listed
        advance(file.size - done, False)
    return digest.hexdigest()


@contextmanager
def _answer(listing: Listing, file: RemoteFile, start: int) -> Iterator[Any]:
    """The answer to a request for the bytes from `start` on, not yet read."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(listing.repo, file.path, revision=listing.commit)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        yield response


def _kept(part: Path, size: int, digest: Any) -> int:
    """Bytes an earlier try has left, hashed; none when they are more than the file has."""
    try:
        if part.stat().st_size > size:
            part.unlink()
            return 0
        with open(part, "rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
            return stream.tell()
    except FileNotFoundError:
        return 0


def _digest(file: RemoteFile) -> Any:
    """sha256 for a large file, git's sha1 for a small one: the length of the etag tells."""
    return hashlib.sha256() if len(file.etag) == 64 else hashlib.sha1(f"blob {file.size}\0".encode())
