"""Reading the event file while it grows, and what a list of runs shows of each."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmerge_tui.errors import RunFolderError
from tmerge_tui.events import (
    Event,
    Logged,
    ResourceSample,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StageStarted,
    Warned,
    encode,
)
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import lock
from tmerge_tui.worker.follow import CHUNK, Ended, EventFile, Follower, cancel, last_word, later_attempt, state_of
from tmerge_tui.worker.journal import BLOCK

START = RunStarted("run", 1, "cpu", {}, [])
DONE = RunFinished("no worse", 1.0, "model", "report.html")
FAILED = RunFailed("DataError", "no text", "", "", 1)


def write(run: RunDir, *events: Event) -> None:
    run.events.write_text("".join(encode(event, n, float(n)) + "\n" for n, event in enumerate(events)))


@given(cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_lines_arrive_once_and_whole_however_the_file_grows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("follow") / "events.jsonl"
    events = [Logged("info", f"é{n}") for n in range(8)]
    data = "".join(encode(event, n, 0.0) + "\n" for n, event in enumerate(events)).encode()
    file, seen = EventFile(path), []
    seen += file.read_new()  # not there yet
    for cut in [*sorted(cuts), len(data)]:
        path.write_bytes(data[:cut])
        seen += file.read_new()
    assert [line.event for line in seen] == events and file.caught_up()


def test_a_line_longer_than_a_chunk_is_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = Logged("info", "x" * (CHUNK + 10))
    path.write_text(encode(event, 0, 0.0) + "\n")
    assert [line.event for line in EventFile(path).read_new()] == [event]


def test_at_end_skips_what_is_there(run: RunDir) -> None:
    write(run, *[Logged("info", "old")] * 3, DONE)
    file = EventFile.at_end(run.events)
    assert file.read_new() == []
    with open(run.events, "a") as out:
        out.write(encode(FAILED, 4, 4.0) + "\n")
    assert [line.event for line in file.read_new()] == [FAILED]


def test_foreign_and_garbled_lines_are_skipped(run: RunDir) -> None:
    run.events.write_bytes(
        b'{"v":9,"seq":0,"t":0,"type":"FromTheFuture"}\n\xff\xfe\n\n' + encode(DONE, 1, 0).encode() + b"\n"
    )
    assert [line.event for line in EventFile(run.events).read_new()] == [DONE]


@pytest.mark.parametrize(
    ("events", "dead", "alive"),
    [
        ([], "new", "running"),
        ([Logged("info", "x")], "crashed", "running"),
        ([StageStarted("fuse", "Fusing", 4, "layers"), DONE], "finished", "finished"),
        ([DONE, ResourceSample(1.0, 1, 2)], "finished", "finished"),
        ([FAILED], "failed", "failed"),
        ([RunInterrupted("SIGTERM")], "interrupted", "interrupted"),
        ([DONE, Logged("debug", "worker 7 started")], "crashed", "running"),  # started again
    ],
)
def test_state_of(run: RunDir, events: list[Event], dead: str, alive: str) -> None:
    if events:
        write(run, *events)
    assert state_of(run) == dead
    lock.acquire(run)
    assert state_of(run) == alive


def test_the_last_word_is_found_behind_many_samples_and_a_torn_line(run: RunDir) -> None:
    write(run, FAILED, *[ResourceSample(1.0, n, n) for n in range(BLOCK // 20)])
    with open(run.events, "a") as out:
        out.write('{"v":1,"seq":9999,"type":"Run')
    assert run.events.stat().st_size > 2 * BLOCK
    assert last_word(run.events) == FAILED


def test_an_earlier_end_is_not_the_end_of_a_run_started_again(run: RunDir) -> None:
    write(run, DONE, Warned("x", "second start"))
    lock.acquire(run)
    follower = Follower(run)
    assert len(follower.poll()) == 2 and follower.ended is None
    with open(run.events, "a") as out:
        out.write(encode(FAILED, 2, 2.0) + "\n")
    follower.poll()
    assert follower.ended == Ended(FAILED)


def test_cancel_without_a_run(run: RunDir) -> None:
    assert cancel(run) is False


def test_cancel_does_not_reach_for_other_machines(run: RunDir) -> None:
    born = psutil.Process().create_time()
    run.lock.write_text(f'{{"pid": {os.getpid()}, "started": {born}, "host": "elsewhere"}}')
    run.events.write_text("")
    with pytest.raises(RunFolderError, match="elsewhere"):
        cancel(run)


@pytest.mark.parametrize(
    ("later", "without", "said"),
    [
        ((), "finished", ""),
        ((START, FAILED), "failed", "a later attempt failed: no text"),
        ((START, RunInterrupted("SIGTERM")), "interrupted", "a later attempt was stopped"),
        ((START,), "crashed", "the worker of a later attempt died"),
    ],
)
def test_a_result_stays_a_result_whatever_is_tried_later(
    run: RunDir, later: tuple[Event, ...], without: str, said: str
) -> None:
    write(run, START, DONE, *later)
    assert state_of(run) == without
    (run.path / "report.json").write_text("{}")
    assert state_of(run) == "finished" and later_attempt(run) == said


def test_another_run_in_the_same_folder_is_running(run: RunDir) -> None:
    write(run, START, DONE, START)
    (run.path / "report.json").write_text("{}")
    lock.acquire(run)
    try:
        assert state_of(run) == "running" and later_attempt(run) == "another run is going on here"
    finally:
        lock.release(run)
