"""The event file as its writer keeps it: whole lines, numbered without gaps, whatever happened before."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmerge_tui.errors import StorageError
from tmerge_tui.events import Logged, RunInterrupted, Warned, encode
from tmerge_tui.worker.follow import EventFile, last_word
from tmerge_tui.worker.journal import BLOCK, Journal


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


@given(cut=st.integers(0, 400), size=st.sampled_from([10, 200, BLOCK]))
def test_any_torn_end_is_cut_and_numbering_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int, size: int
) -> None:
    """Reference: the complete lines of the bytes that were left."""
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    whole = "".join(encode(Logged("info", "ä" * size), n, 1.0) + "\n" for n in range(3)).encode()
    left = whole[: max(len(whole) - cut, 0)]
    path.write_bytes(left)
    journal = Journal(path)
    journal.emit(Warned("here", "after the crash"))
    journal.close()
    complete = left[: left.rfind(b"\n") + 1]
    assert path.read_bytes().startswith(complete)
    assert numbers(path) == list(range(complete.count(b"\n") + 1))


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")

    def chatter(name: str) -> None:
        for _ in range(200):
            journal.emit(Logged("info", name * 300))

    threads = [threading.Thread(target=chatter, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert numbers(tmp_path / "events.jsonl") == list(range(800))


def test_nothing_follows_the_last_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.emit_last(RunInterrupted("SIGTERM"), patience=0.1)
    late = threading.Thread(target=journal.emit, args=(Logged("info", "late"),), daemon=True)
    late.start()
    late.join(0.2)
    assert late.is_alive()
    assert last_word(path) == RunInterrupted("SIGTERM") and numbers(path) == [0]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.emit(Logged("info", "before"))
    write, room = os.write, [30]

    def full(file: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(file, bytes(data)[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="disk full"):
        journal.emit(Logged("info", "x" * 10))
    monkeypatch.undo()
    journal.emit(Logged("info", "after"))
    assert numbers(path) == [0, 1]


def test_a_line_of_something_else_does_not_stop_the_numbering(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("not ours\n")
    journal = Journal(path)
    journal.emit(Logged("info", "ours"))
    assert [line.event for line in EventFile(path).read_new()] == [Logged("info", "ours")]


def test_an_unwritable_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(StorageError):
        Journal(tmp_path / "events.jsonl")
