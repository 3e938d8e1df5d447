"""Samples arrive while a block runs; peaks come from the operating system."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.waiting import until
from tmerge_tui.engine import resources
from tmerge_tui.engine.resources import Sampler, peaks
from tmerge_tui.errors import StorageError
from tmerge_tui.events import Event, ResourceSample


def test_samples_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "INTERVAL", 0.01)
    events: list[Event] = []
    with Sampler(events.append, tmp_path):
        until(lambda: len(events) >= 3)
    assert all(isinstance(e, ResourceSample) for e in events)
    # none after the end
    assert not [t for t in threading.enumerate() if t.name == "resources"]


def test_peak_memory_grows_by_what_is_allocated() -> None:
    before, _ = peaks()
    block = bytearray(before + 50_000_000)  # more than there was at the peak, every page touched
    after, gpu = peaks()
    assert after >= before + 40_000_000 and len(block) > 0
    assert gpu >= 0


def test_a_full_disk_ends_the_samples_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "INTERVAL", 0.01)
    calls = []

    def full(event: Event) -> None:
        calls.append(event)
        raise StorageError("disk full")

    with Sampler(full, tmp_path) as sampler:
        sampler._thread.join()  # it ends by itself
    assert len(calls) == 1
