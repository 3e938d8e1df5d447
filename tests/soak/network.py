"""A bad line to the Hub: cut, slow, wrong length, wrong content, a proxy that answers HTML, a repository that changes.

The right result is the files as the Hub has them; whatever else comes ends in a clear error, and no wrong byte stays in
the cache under a right name.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from random import Random

from tests.hub.server import Hub
from tests.soak.judge import Campaign, Edit

HTML = b"<html><head><title>Sign in to this network</title></head><body>Please log in.</body></html>" * 3
PATHS = ("/api/models/*", "/org/m/resolve/*/config.json", "/org/m/resolve/*", "/model/*", "*")
WAYS = ("cut", "damage", "html", "status", "no_ranges", "silent", "slow", "longer", "shorter", "loop", "changed")
STATUSES = (301, 302, 400, 401, 403, 404, 408, 416, 418, 429, 500, 502, 503, 504)


@functools.cache
def files() -> dict[str, bytes]:
    dice = Random(0)
    return {
        "config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}" * 100,
        "model.safetensors": dice.randbytes(30_000), "README.md": b"# A model\n",
    }  # fmt: skip


def propose(dice: Random) -> list[Edit]:
    made: list[Edit] = []
    for _ in range(dice.randint(1, 4)):
        way = dice.choice(WAYS)
        more = {"cut": dice.randrange(31_000), "status": dice.choice(STATUSES)}.get(way, 0)
        made.append((way, dice.choice(PATHS), more, dice.choice((1, 1, 2, -1))))
    return made


def attempt(edits: list[Edit], folder: Path) -> None:
    from huggingface_hub import close_session, constants

    from tmerge_tui.hub import fetch, listing, patience
    from tmerge_tui.hub.download import download, download_texts

    with Hub() as hub:
        repo = hub.add("org/m", files())
        home = folder / "hf"
        constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = hub.url, False, True
        constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HOME, constants.HF_HUB_CACHE = str(home), str(home / "hub")
        constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 1
        listing.ANSWER, patience.PAUSE, fetch.PAUSE = 1.0, 0.001, 0.001
        close_session()
        try:
            for way, path, more, times in edits:
                _order(hub, way, path, more, times)
            found = listing.list_model("org/m")
            if any(way == "changed" for way, *_ in edits):
                repo.change(config__json=b'{"model_type": "qwen2"}')
            download_texts(found)
            here = download(found)
            wrong = [name for name in found.files if (here / name.path).read_bytes() != files()[name.path]]
            assert not wrong, f"other content than the Hub has: {wrong}"
        finally:
            close_session()
            _only_whole_blobs(home)


def _order(hub: Hub, way: str, path: str, more: int, times: int) -> None:
    if way == "cut":
        hub.fail(path, cut_at=more, times=times)
    elif way in ("damage", "no_ranges", "silent"):
        hub.fail(path, times=min(times, 1) if way == "silent" else times, **{way: True})
    elif way == "html":
        hub.fail(path, status=200, body=HTML, headers={"Content-Type": "text/html"}, times=times)
    elif way == "status":
        hub.fail(path, status=more, body=HTML, headers={"Location": f"{hub.url}/elsewhere"}, times=times)
    elif way == "slow":
        hub.fail(path, slow=0.002, times=times)
    elif way in ("longer", "shorter"):
        hub.fail(path, stated=7 if way == "longer" else -7, times=times)
    elif way == "loop":
        hub.fail(path, status=302, headers={"Location": f"{hub.url}/org/m/resolve/main/config.json"}, times=times)


def _only_whole_blobs(home: Path) -> None:
    """Every finished blob is named after its content."""
    for blob in home.glob("hub/models--*/blobs/*"):
        if "." not in blob.name and blob.is_file():
            data = blob.read_bytes()
            sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            assert blob.name in (hashlib.sha256(data).hexdigest(), sha1), "a blob that is not what its name says"


NETWORK = Campaign("network", 600, propose, attempt)
