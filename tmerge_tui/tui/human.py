"""Moments and long names as a screen shows them."""

from __future__ import annotations

import re
import time

OPTION = re.compile(r"\b(calibration|transport|fusion|evaluation|adaptation)\.([a-z_]+)\b")


def in_words(text: str) -> str:
    """A message as a form says it: `calibration.max_length` is the field `max length`."""
    return OPTION.sub(lambda match: match[2].replace("_", " "), text)


def ago(moment: float, now: float | None = None) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `2 days ago`, then the date."""
    seconds = (time.time() if now is None else now) - moment
    if seconds < 90:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.0f} h ago"
    if seconds < 14 * 86400:
        return f"{seconds / 86400:.0f} days ago"
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def shorten(text: str, width: int) -> str:
    """Keeps both ends of a long name: `/very/long…/target`."""
    if width < 2 or len(text) <= width:
        return text[: max(width, 0)]
    left = (width - 1) // 3
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def tail(name: str, width: int) -> str:
    """A path or an id cut at its beginning, since its end says which one it is: `…3.2-1B-Instruct`."""
    if len(name) <= width:
        return name
    last = name.rstrip("/").rpartition("/")[2]
    return f"…/{last}" if 2 < len(last) + 2 <= width else f"…{name[len(name) - max(width - 1, 0) :]}"
