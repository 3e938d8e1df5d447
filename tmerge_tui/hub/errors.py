"""What the Hub, the network and the cache object to, in words a person can act on. Tokens appear in none of them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tmerge_tui.errors import ModelError, StorageError, TmergeError

_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9_]{4,}"), "hf_***"),
    (re.compile(r"(?i)(bearer )\S+"), r"\1***"),
    (re.compile(r"(://)[^/\s@]+@"), r"\1***@"),  # user:password@ of a proxy
    (re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+"), r"\1"),  # signatures of storage links
)


def scrub(text: str) -> str:
    """`text` without tokens, passwords and signed links."""
    for secret in secrets():
        text = text.replace(secret, "***")
    for pattern, plain in _SECRETS:
        text = pattern.sub(plain, text)
    return text


MALFORMED = (KeyError, TypeError, AttributeError, ValueError)  # of the client, over an answer of another form


def secrets() -> tuple[str, ...]:
    """The Hub's token on this machine, as a word that nothing of ours may hold."""
    from huggingface_hub import get_token

    token = get_token()
    return (token,) if token else ()


@contextmanager
def explained(name: str, kind: type[TmergeError] = ModelError, what: str = "model") -> Iterator[None]:
    """Turns every failure of the Hub's client inside the block into `kind`, or StorageError for a full disk.

    `name` is org/name or org/name@revision; `what` is "model" or "data set". The original error is not chained, since
    its text may hold a signed link or a token.
    """
    try:
        yield
    except client_errors() as error:
        raise explain(error, name, kind, what) from None
    except MALFORMED as error:
        raise misunderstood(error, name, kind) from None


def misunderstood(error: Exception, name: str, kind: type[TmergeError] = ModelError) -> TmergeError:
    """What answers is no Hub: the client builds its objects from whatever JSON, or page, it gets."""
    return kind(
        f"{name}: what answers for the Hub is not understood ({type(error).__name__}: {_first(error)})",
        "the API of huggingface.co",
        f"a login page or proxy may stand in between; {_mirror()}; or give the path of a folder",
    )


def client_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub and the HTTP library under it raise; its retries are no longer written to the terminal."""
    import httpx2
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    return (httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, OSError)


def explain(error: Exception, name: str, kind: type[TmergeError], what: str) -> TmergeError:
    """The error a user sees for `error`, which the client raised over `name`."""
    import httpx2
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    if isinstance(error, HFValidationError):
        where = "neither a folder here nor a Hub id" if what == "model" else "no id of a data set on the Hub"
        return kind(f"{repo!r} is {where}", "org/name" + (" or the path of a folder" * (what == "model")), SPELLING)
    if isinstance(error, GatedRepoError):
        return _gated(repo, kind, what)
    if isinstance(error, RepositoryNotFoundError):
        return kind(
            f"the Hub has no {what} {repo}, or not for {_who()}",
            "an id such as org/name, of a repository that you may read",
            f"{SPELLING}; a private one needs `hf auth login` with an account that may read it",
        )
    if isinstance(error, RevisionNotFoundError):
        return kind(
            f"{repo} has no revision {revision or 'of that name'}",
            "a branch, tag or commit of it",
            f"see {page(repo, what)}/tree/main, or leave the revision out to use main",
        )
    if isinstance(error, DisabledRepoError):
        return kind(f"{repo} has been disabled on the Hub", "a repository that can be read", f"choose another {what}")
    if isinstance(error, LocalTokenNotFoundError):
        return _no_token(f"{name}: no token on this machine", kind)
    if isinstance(error, EntryNotFoundError):
        return kind(f"{name}: a file is not there: {_first(error)}", "a whole repository", f"choose another {what}")
    if isinstance(error, OfflineModeIsEnabled):
        return kind(f"{name}: the Hub is not asked, since offline mode is on", "a copy in the cache", ONLINE)
    if isinstance(error, HfHubHTTPError):
        return _answered(error, name, kind)
    if isinstance(error, httpx2.ProxyError):
        return kind(f"{name}: the proxy does not let this through: {_first(error)}", "a proxy that works", PROXY)
    if isinstance(error, httpx2.TimeoutException):
        return kind(f"{name}: the Hub did not answer in time", "an answer", f"try again; {_mirror()}")
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)):
        return kind(f"{name}: the Hub cannot be reached: {_first(error)}", "a connection", f"{ONLINE}; {_mirror()}")
    return _from_disk(error, name, kind)


SPELLING = "check the spelling"
ONLINE = "go online once so that it is cached, or give a local copy"
PROXY = "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"


def page(repo: str, what: str = "model") -> str:
    """The repository's page on the Hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if what == 'data set' else ''}{repo}"


def _gated(repo: str, kind: type[TmergeError], what: str) -> TmergeError:
    return kind(
        f"{repo} is gated, and {_who()} has not been let in",
        "an account that accepted its terms",
        f"accept them at {page(repo, what)} and log in here with `hf auth login` (or set HF_TOKEN)",
    )


def _no_token(found: str, kind: type[TmergeError]) -> TmergeError:
    return kind(found, "a login", "run `hf auth login`, or set HF_TOKEN; tokens are made at hf.co/settings/tokens")


def _answered(error: Any, name: str, kind: type[TmergeError]) -> TmergeError:
    """By the status code of the Hub's answer."""
    code = error.response.status_code
    if code == 401:
        return _no_token(f"{name}: the Hub does not accept {'the token' if _has_token() else 'a nameless visit'}", kind)
    if code == 403:
        return kind(
            f"{name}: not allowed for {_who()}: {_said(error)}",
            "a token with that permission",
            "make one at hf.co/settings/tokens, then `hf auth login`",
        )
    if code == 429:
        wait = error.response.headers.get("Retry-After")
        when = f" for {wait} seconds" if wait and wait.isdigit() else ""
        return kind(
            f"{name}: too many requests: the Hub asks to wait{when}",
            "",
            "wait, then run the same command; a login (`hf auth login`) allows more requests",
        )
    if code >= 500:
        return kind(f"{name}: the Hub is in trouble (error {code})", "", "try again later; what has arrived is kept")
    return kind(f"{name}: the Hub said {code}: {_said(error)}", "", f"{SPELLING}, or try again later")


def _from_disk(error: Exception, name: str, kind: type[TmergeError]) -> TmergeError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"disk full while fetching {name} into {cache_folder()}",
            "room for the model",
            "free space or set HF_HOME to another disk, then run the same command: what has arrived is kept",
        )
    if isinstance(error, PermissionError):
        return StorageError(
            f"cannot write {error.filename or cache_folder()}", "a cache that can be written", "set HF_HOME"
        )
    return kind(f"{name}: {_first(error)}", "a connection to the Hub, or a copy in the cache", ONLINE)


def cache_folder() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _who() -> str:
    return "the account that is logged in here" if _has_token() else "someone who is not logged in"


def _mirror() -> str:
    endpoint = os.environ.get("HF_ENDPOINT")
    return f"check HF_ENDPOINT, which is {scrub(endpoint)}" if endpoint else "or set HF_ENDPOINT to a mirror"


def _said(error: Any) -> str:
    return scrub((error.server_message or _first(error)).splitlines()[0])


def _first(error: Exception) -> str:
    """The first line of what a library says, without error numbers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return scrub(re.sub(r"^\[Errno -?\d+\] ", "", lines[0]))
