"""Names, types and shapes of a repository's tensors, from the headers of its weight files: kilobytes at any size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tmerge_tui.errors import ModelError
from tmerge_tui.files import parse_json
from tmerge_tui.hub.errors import explained
from tmerge_tui.hub.listing import Listing, RemoteFile
from tmerge_tui.hub.patience import patiently

FIRST = 1 << 17  # bytes asked for at first: most headers are shorter
LONGEST = 100_000_000  # bytes of header, the limit of the safetensors library
WORKERS = 8


@dataclass(frozen=True)
class RemoteTensor:
    file: str
    dtype: str  # as safetensors names it: F32, BF16, ...
    shape: tuple[int, ...]
    start: int  # bytes in the file, absolute
    end: int


def read_headers(listing: Listing) -> dict[str, RemoteTensor]:
    """Every tensor of the weight files, by its name.

    Raises ModelError: no access, no connection, a file that is no safetensors.
    """
    if listing.pickled:
        raise ModelError(
            f"{listing.name} has only PyTorch weights (.bin), which tell nothing before they are downloaded",
            "safetensors weights",
            "choose a repository with model.safetensors, or download this one",
        )
    with explained(listing.name), ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(lambda file: _read(listing, file), listing.weights))
    return {name: tensor for part in found for name, tensor in part.items()}


def _read(listing: Listing, file: RemoteFile) -> dict[str, RemoteTensor]:
    blob = listing.folder / file.path
    first = blob.open("rb").read(FIRST) if blob.is_file() else read_range(listing, file, 0, min(FIRST, file.size))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > min(file.size - 8, LONGEST):
        raise _damaged(listing, file)
    while len(first) < 8 + length:
        more = read_range(listing, file, len(first), 8 + length)
        if not more:
            raise _damaged(listing, file)
        first += more
    try:
        entries = parse_json(first[8 : 8 + length])
        entries.pop("__metadata__", None)
        return {
            name: RemoteTensor(file.path, e["dtype"], tuple(e["shape"]), *(8 + length + at for at in e["data_offsets"]))
            for name, e in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise _damaged(listing, file) from None


def read_range(listing: Listing, file: RemoteFile, start: int, end: int) -> bytes:
    """Bytes `start` to `end` (exclusive) of a file on the Hub, or at least a beginning of them."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(listing.repo, file.path, revision=listing.commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}

    def ask() -> bytes:
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            hf_raise_for_status(response)
            whole = response.status_code != 206  # a server without ranges: read no further than needed
            wanted, found = end if whole else end - start, b""
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) >= wanted:
                    break
            return found[start:end] if whole else found

    return patiently(ask)


def _damaged(listing: Listing, file: RemoteFile) -> ModelError:
    return ModelError(f"{listing.name}: {file.path} has no safetensors header", "safetensors weights", "choose another")
