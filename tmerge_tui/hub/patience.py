"""Asking again when the Hub says later: 429 with its Retry-After, 5xx, and connections that break."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TRIES = 4
PAUSE = 0.5  # seconds before the second try; doubles
LONGEST = 30.0  # seconds that one Retry-After is followed; a longer one is told to the user instead


def patiently(ask: Callable[[], T]) -> T:
    """`ask()`, repeated while the Hub is busy; the last failure is raised. For calls the client does not repeat."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(TRIES):
        last = attempt == TRIES - 1
        try:
            return ask()
        except HfHubHTTPError as error:
            wait = retry_after(error.response) if retryable(error.response.status_code) else None
            if wait is None or wait > LONGEST or last:
                raise
            time.sleep(max(wait, PAUSE * 2**attempt))
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            if isinstance(error, httpx2.ConnectError) or last:  # nobody there: the cache is asked next
                raise
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError("the last try returns or raises")


def retryable(status: int) -> bool:
    return status in (408, 429) or status >= 500


def retry_after(response: object) -> float:
    """Seconds that an answer asks to wait; 0 when it does not say."""
    said = getattr(response, "headers", {}).get("Retry-After", "")
    try:
        return max(float(said), 0.0)
    except ValueError:  # a date, or nothing
        return 0.0
