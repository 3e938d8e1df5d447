"""Numbers as people read them: sizes, counts, durations, moments."""

from __future__ import annotations

import time

DASH = "–"


def size(count: float | None) -> str:
    """Bytes in decimal units: `1.2 GB`, `340 MB`."""
    if count is None:
        return DASH
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{count:.0f} B"


def count(number: float | None) -> str:
    """Parameters, downloads: `1.24 B`, `135 M`, `12 k`."""
    if number is None:
        return DASH
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            value = number / scale
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{digits}f} {unit}"
    return f"{number:.0f}"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `42 s`, `3:07`, `2:05:09`."""
    if seconds is None:
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    hours, rest = divmod(total, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


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


def rate(value: float, unit: str) -> str:
    """Units a second, or seconds a unit when slow."""
    if value <= 0:
        return DASH
    one = unit.rstrip("s") or unit
    return f"{value:.1f} {unit}/s" if value >= 1 else f"{1 / value:.1f} s/{one}"


def shorten(text: str, width: int) -> str:
    """Keeps both ends of a long name: `/very/long…/target`."""
    if width < 2 or len(text) <= width:
        return text[: max(width, 0)]
    left = (width - 1) // 3
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"
