"""Real worker processes with fake pipelines: how they run, fail, die and are stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.waiting import PATIENCE, until
from tmerge_tui.errors import RunFolderError
from tmerge_tui.events import Event, Line, RunFailed, RunFinished, RunInterrupted, StageStarted
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import lock, spawn
from tmerge_tui.worker.follow import Ended, EventFile, Follower, cancel, follow, state_of
from tmerge_tui.worker.spawn import Handle

Start = Callable[[str], Handle]


def drain(run: RunDir, worker: Handle | None = None) -> tuple[list[Event], Ended]:
    *lines, ended = follow(run, worker=worker)
    assert isinstance(ended, Ended)
    return [line.event for line in lines if isinstance(line, Line)], ended


def wait_for(run: RunDir, kind: type[Event]) -> None:
    file = EventFile(run.events)
    until(lambda: any(isinstance(line.event, kind) for line in file.read_new()))


def test_a_run_is_followed_to_its_end(run: RunDir, start: Start) -> None:
    worker = start("whole")
    events, ended = drain(run, worker)
    assert isinstance(ended.event, RunFinished) and ended.exit_code == 0
    assert events[-1] == ended.event
    assert worker.wait(PATIENCE) == 0
    assert state_of(run) == "finished" and not run.lock.exists()


def test_stray_output_goes_to_the_log_and_not_into_the_events(run: RunDir, start: Start) -> None:
    worker = start("chatty")
    events, ended = drain(run, worker)
    assert isinstance(ended.event, RunFinished)
    assert not any(isinstance(e, RunFailed) for e in events)
    assert worker.wait(PATIENCE) == 0
    log = run.log.read_text()
    assert "straight to the descriptor" in log and "and to the other one" in log and "RunFailed" in log


@pytest.mark.parametrize(
    ("fake", "kind", "code", "found"),
    [
        ("breaks", "KeyError", 1, "unexpected KeyError: 'layers'"),
        ("numerics", "NumericsError", 1, "NaN in layer 3"),
        ("refused", "CheckError", 2, "check: 2 problems"),
        ("starves", "MemoryError", 1, "out of memory"),
        ("forgets", "RuntimeError", 1, "without RunFinished"),
    ],
)
def test_failures_are_events_with_their_exit_code(
    run: RunDir, start: Start, fake: str, kind: str, code: int, found: str
) -> None:
    worker = start(fake)
    _, ended = drain(run, worker)
    assert isinstance(ended.event, RunFailed)
    assert (ended.event.kind, ended.event.exit_code, ended.exit_code) == (kind, code, code)
    assert found in ended.event.message
    assert "Traceback" in ended.event.details and "Traceback" not in ended.event.message
    assert worker.wait(PATIENCE) == code
    assert state_of(run) == "failed"


def test_kill_9_is_a_crash_that_names_the_stage_and_the_way_on(run: RunDir, start: Start) -> None:
    worker = start("sleeps")
    wait_for(run, StageStarted)
    assert state_of(run) == "running"
    os.kill(worker.pid, signal.SIGKILL)
    _, ended = drain(run, worker)
    assert ended.event is None and ended.error is not None and ended.exit_code == 1
    text = str(ended.error)
    assert (
        "SIGKILL" in text and "Solving transport" in text and "out of memory" in text and "run the same command" in text
    )
    assert state_of(run) == "crashed"
    # whoever did not start it sees the same, without the signal's name
    _, seen = drain(run)
    assert seen.error is not None and "is gone during the stage 'Solving transport'" in str(seen.error)


def test_a_segfault_shows_its_trace(run: RunDir, start: Start) -> None:
    follower = Follower(run, from_start=False)
    follower.worker = start("segfaults")
    until(lambda: (follower.poll(), follower.ended)[1])
    assert follower.ended is not None and follower.ended.error is not None
    assert "SIGSEGV" in str(follower.ended.error) and "fakes.py" in run.log.read_text()
    assert "out of memory" not in str(follower.ended.error)


@pytest.mark.parametrize("fake", ["sleeps", "deaf"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_long_operation(run: RunDir, start: Start, fake: str, number: signal.Signals) -> None:
    worker = start(fake)
    wait_for(run, StageStarted)
    os.kill(worker.pid, number)
    assert worker.wait(PATIENCE) == 130  # the operation would take a minute
    _, ended = drain(run, worker)
    assert ended.event == RunInterrupted(number.name) and ended.exit_code == 130
    assert state_of(run) == "interrupted" and not run.lock.exists()


def test_hangup_does_not_stop_a_run(run: RunDir, start: Start) -> None:
    worker = start("sleeps")
    wait_for(run, StageStarted)
    later = EventFile.at_end(run.events)
    os.kill(worker.pid, signal.SIGHUP)
    until(lambda: later.read_new() or worker.returncode is not None)  # a sign of life: it samples what it uses
    assert worker.returncode is None and state_of(run) == "running"


def test_the_worker_is_in_a_session_of_its_own(run: RunDir, start: Start) -> None:
    worker = start("sleeps")
    wait_for(run, StageStarted)
    assert os.getsid(worker.pid) == worker.pid != os.getsid(0)


@pytest.mark.parametrize("fake", ["sleeps", "holds_interpreter"])
def test_cancel_waits_for_no_operation(run: RunDir, start: Start, fake: str) -> None:
    """`holds_interpreter` cannot hear any signal: SIGKILL follows, and the interruption is recorded all the same."""
    worker = start(fake)
    wait_for(run, StageStarted)
    assert cancel(run, worker)
    assert worker.returncode is not None
    assert state_of(run) == "interrupted"
    assert cancel(run, worker) is False


def test_cancel_by_someone_else(run: RunDir, start: Start) -> None:
    start("sleeps")
    wait_for(run, StageStarted)
    assert cancel(run) and state_of(run) == "interrupted"


def test_a_worker_that_has_ended_is_waited_for(run: RunDir, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start("lingers")
    wait_for(run, RunFinished)
    assert first.returncode is None and state_of(run) == "finished"

    def wait(seconds: float) -> None:
        (run.path / "leave").touch()
        time.sleep(seconds)

    monkeypatch.setattr(spawn, "LEAVING", PATIENCE)
    monkeypatch.setattr(spawn, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
    second = start("whole")
    assert first.wait(PATIENCE) == 0 and second.wait(PATIENCE) == 0


def test_a_signal_after_the_end_does_not_undo_it(run: RunDir, start: Start) -> None:
    worker = start("lingers")
    wait_for(run, RunFinished)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0 and state_of(run) == "finished"


def test_one_worker_at_a_time(run: RunDir, start: Start) -> None:
    start("sleeps")
    wait_for(run, StageStarted)
    with pytest.raises(RunFolderError, match="in use"):
        start("whole")
    assert state_of(run) == "running"


def test_a_worker_that_finds_the_lock_taken_writes_no_event(run: RunDir, start: Start) -> None:
    lock.acquire(run)  # by this process, after the parent's own check
    original, spawn.refuse_if_busy = spawn.refuse_if_busy, lambda run: None
    try:
        follower = Follower(run, from_start=False)
        worker = follower.worker = start("whole")
    finally:
        spawn.refuse_if_busy = original
    assert worker.wait(PATIENCE) == 1
    follower.poll()
    assert follower.ended is not None and "in use" in str(follower.ended.error)
    assert not run.events.exists()
    lock.release(run)


def test_running_again_appends_and_continues_the_numbers(run: RunDir, start: Start) -> None:
    worker = start("sleeps")
    wait_for(run, StageStarted)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(PATIENCE)
    with open(run.events, "ab") as file:
        file.write(b'{"v":1,"seq":99,"t":1.0,"type":"Wa')  # what a power cut leaves
    follower = Follower(run, from_start=False)
    follower.worker = start("whole")
    fresh: list[Line] = []
    until(lambda: (fresh.extend(follower.poll()), follower.ended)[1])
    assert follower.ended is not None and isinstance(follower.ended.event, RunFinished)
    lines = [line for line in follow(run) if isinstance(line, Line)]
    assert [line.seq for line in lines] == list(range(len(lines)))
    assert lines[-len(fresh) :] == fresh
    assert b'"seq":99' not in run.events.read_bytes()


def test_a_broken_recipe_in_the_folder_is_a_failure(run: RunDir, start: Start) -> None:
    run.recipe.write_text("alpha: 3")
    _, ended = drain(run, start("whole"))
    assert isinstance(ended.event, RunFailed) and ended.exit_code == 2


def test_resource_samples_arrive(run: RunDir, start: Start) -> None:
    from tmerge_tui.events import ResourceSample

    start("sleeps")
    wait_for(run, ResourceSample)
    sample = next(line.event for line in EventFile(run.events).read_new() if isinstance(line.event, ResourceSample))
    assert 1e6 < sample.rss < sample.memory_total and sample.disk_free > 0
