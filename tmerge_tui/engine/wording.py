"""Measured values in words: one place, so that verdict, report and model card say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tmerge_tui.quantities import NONE, known


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
