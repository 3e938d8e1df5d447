"""Numbers with units. Reference: written out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmerge_tui.quantities import clock, count, duration, magnitude, progress, rate, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (61_234, "61.2 kB"), (999_400, "999 kB"), (999_600, "1 MB"),
        (340e6, "340 MB"), (1_412_000_000, "1.41 GB"), (16.8e9, "16.8 GB"), (2e12, "2 TB"), (1.5e16, "15,000 TB"),
    ],
)  # fmt: skip
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (12_480, "12.5 k"), (135e6, "135 M"), (1_235_814_400, "1.24 B"), (999_700, "1 M")],
)
def test_magnitudes(value: float, text: str) -> None:
    assert magnitude(value) == text


@pytest.mark.parametrize(
    ("seconds", "took", "running"),
    [
        (0.04, "0.0 s", "0:00"), (0.4, "0.4 s", "0:00"), (9.94, "9.9 s", "0:10"), (9.96, "10 s", "0:10"),
        (59.4, "59 s", "0:59"), (59.6, "1 min 00 s", "1:00"), (187, "3 min 07 s", "3:07"),
        (3599.7, "1 h 00 min", "1:00:00"), (7509, "2 h 05 min", "2:05:09"), (360_000, "100 h 00 min", "100:00:00"),
    ],
)  # fmt: skip
def test_times(seconds: float, took: str, running: str) -> None:
    assert (duration(seconds), clock(seconds)) == (took, running)


@given(st.floats(0, 3600, exclude_max=True))
def test_a_clock_does_not_jump_within_an_hour(seconds: float) -> None:
    assert len(clock(seconds)) - len(clock(seconds + 1)) <= 0
    assert len(f"{clock(seconds):>7}") == 7


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (37.52, "pairs", "37.5 pairs/s"), (1234.4, "tokens", "1,234 tokens/s"), (0.3, "steps", "3.33 s/step"),
        (0.001, "texts", "1,000 s/text"), (25.1e6, "bytes", "25.1 MB/s"), (0.5, "bytes", "0 B/s"), (0, "pairs", "–"),
    ],
)  # fmt: skip
def test_rates(value: float, unit: str, text: str) -> None:
    assert rate(value, unit) == text


def test_progress() -> None:
    assert progress(150, 1264, "pairs") == "150/1,264 pairs"
    assert progress(61_234, 1_412_000, "bytes") == "61.2 kB/1.41 MB"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "12", [1]])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    assert {size(value), magnitude(value), count(value), duration(value), clock(value), rate(value, "s")} == {"–"}


def test_counts() -> None:
    assert (count(1234.4), count(0)) == ("1,234", "0")
