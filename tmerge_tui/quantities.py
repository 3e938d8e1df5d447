"""Numbers with a unit as a person reads them: one style for screens, messages and reports.

Values are as they come, from JSON too: what is absent or not finite is shown as `NONE`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

NONE = "–"  # what stands where there is no number


def known(value: Any) -> float | None:
    """`value` as a float; None when it is absent or not finite."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def size(value: Any) -> str:
    """Bytes in decimal units, as disks and the Hub count them: `999 B`, `61.2 kB`, `1.41 GB`."""
    x = known(value)
    return NONE if x is None else _scaled(x, ("B", "kB", "MB", "GB", "TB"))


def magnitude(value: Any) -> str:
    """About how many, of parameters or downloads: `999`, `12.5 k`, `135 M`, `1.24 B`."""
    x = known(value)
    return NONE if x is None else _scaled(x, ("", "k", "M", "B", "T")).rstrip()


def count(value: Any) -> str:
    """Exactly how many: `1,234`."""
    x = known(value)
    return NONE if x is None else f"{round(x):,}"


def duration(value: Any) -> str:
    """How long something takes or took, from seconds: `0.4 s`, `42 s`, `3 min 07 s`, `2 h 05 min`."""
    x = known(value)
    if x is None:
        return NONE
    if x < 9.95:
        return f"{x:.1f} s"
    seconds = round(x)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(value: Any) -> str:
    """A time that is running, from seconds, which must not jump about: `0:07`, `3:07`, `2:05:09`."""
    x = known(value)
    if x is None:
        return NONE
    minutes, seconds = divmod(round(x), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def progress(done: float, total: float, unit: str) -> str:
    """`150/264 pairs`; of bytes, their size: `61.2 kB/1.41 MB`."""
    return f"{size(done)}/{size(total)}" if unit == "bytes" else f"{count(done)}/{count(total)} {unit}"


def rate(value: Any, unit: str) -> str:
    """Units a second, or seconds a unit when slow: `37.5 pairs/s`, `3.4 s/pair`; of bytes, their size."""
    x = known(value)
    if x is None or x <= 0:
        return NONE
    if unit == "bytes":
        return f"{size(x)}/s"
    return f"{_digits(x)} {unit}/s" if x >= 1 else f"{_digits(1 / x)} s/{unit.removesuffix('s') or unit}"


def finite(value: Any) -> Any:
    """The same nested value with NaN and Inf as None, since JSON has neither, and tuples as lists."""
    if isinstance(value, float):
        return known(value)
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def bits(value: Any) -> str:
    """Bits per byte, four decimals."""
    number = known(value)
    return NONE if number is None else f"{number:.4f}"


def signed(value: Any) -> str:
    """A difference in bits per byte; one too small for four decimals keeps two digits and its sign."""
    number = known(value)
    if number is None:
        return NONE
    if number == 0:
        return "0.0000"
    return f"{number:+.4f}" if abs(number) >= 5e-5 else f"{number:+.1e}"


def interval(low: Any, high: Any) -> str:
    return NONE if known(low) is None or known(high) is None else f"{signed(low)} to {signed(high)}"


def number(value: Any) -> str:
    """Three significant digits: ratios, costs, violations."""
    x = known(value)
    if x is None:
        return NONE
    if x == 0:
        return "0"
    if 99.95 <= abs(x) < 1e5:
        return f"{x:,.0f}"
    return f"{x:#.3g}" if 1e-3 <= abs(x) < 1e5 else f"{x:.1e}"


def quantile(values: Iterable[float], q: float) -> float:
    """The q-quantile, linear between neighbours. Raises ValueError on no values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("quantile of no values")
    at = q * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = list(words) or [NONE]
    return f"{', '.join(most)} and {last}" if most else last


def _scaled(x: float, units: tuple[str, ...]) -> str:
    """Three digits and the unit, each of which is a thousand of the one before; the first is counted whole."""
    for unit in units[:-1]:
        if abs(x) < 999.5:
            return f"{x:.0f} {unit}" if unit == units[0] else f"{_digits(x)} {unit}"
        x /= 1000
    return f"{_digits(x)} {units[-1]}"


def _digits(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 99.5 else f"{x:.3g}"
