"""Who holds a run: the living, not the dead, not a recycled pid."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from tests.waiting import PATIENCE, until
from tmerge_tui.errors import RunFolderError
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import lock


def write(run: RunDir, pid: int, started: float, host: str | None = None) -> None:
    run.lock.write_text(json.dumps({"pid": pid, "started": started, "host": host or socket.gethostname()}))


def test_acquire_and_release(run: RunDir) -> None:
    assert lock.holder(run) is None
    lock.acquire(run)
    held = lock.holder(run)
    assert held is not None and held.pid == os.getpid() and held.here
    with pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
        lock.acquire(run)
    lock.release(run)
    assert not run.lock.exists()


@pytest.mark.parametrize("body", [b"", b"{", b'{"pid": "x"}', b"[]"])
def test_a_lock_that_says_nothing_is_taken_over(run: RunDir, body: bytes) -> None:
    run.lock.write_bytes(body)
    lock.acquire(run)
    assert lock.holder(run) is not None


def test_a_dead_worker_and_a_recycled_pid_hold_nothing(run: RunDir) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        born = psutil.Process(child.pid).create_time()
        until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        write(run, child.pid, born)
        assert lock.holder(run) is None  # a zombie: dead, though nobody has asked for its exit code
    assert lock.holder(run) is None
    write(run, os.getpid(), psutil.Process().create_time() - 3600)  # our pid, an hour ago someone else's
    assert lock.holder(run) is None
    lock.acquire(run)


def test_release_leaves_the_lock_of_others(run: RunDir) -> None:
    write(run, os.getppid(), psutil.Process(os.getppid()).create_time())
    lock.release(run)
    assert run.lock.exists()


def test_another_machine_is_believed_while_events_arrive(run: RunDir) -> None:
    write(run, 1, 0.0, host="elsewhere")
    assert lock.holder(run) is None
    run.events.write_text("")
    with pytest.raises(RunFolderError, match="on elsewhere"):
        lock.acquire(run)
    old = time.time() - 2 * lock.SILENCE
    os.utime(run.events, (old, old))
    lock.acquire(run)


def test_looking_at_a_lock_and_taking_it_over_is_one_step(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, os.getpid(), 0.0)
    look, both = lock.refuse_if_held, threading.Barrier(2)

    def look_and_wait(run: RunDir) -> None:
        look(run)
        with suppress(threading.BrokenBarrierError):  # as it should be: nobody else looks before this one has taken it
            both.wait(0.3)

    monkeypatch.setattr(lock, "refuse_if_held", look_and_wait)
    with ThreadPoolExecutor(2) as threads:
        tries = [threads.submit(lock.acquire, run) for _ in range(2)]
    refused = [each.exception() for each in tries if each.exception()]
    assert len(refused) == 1 and isinstance(refused[0], RunFolderError)


ROUNDS = 10


def _contend(path: str, steps: multiprocessing.synchronize.Barrier, won: multiprocessing.queues.Queue[int]) -> None:
    run = RunDir(path)
    for number in range(ROUNDS):
        if steps.wait() == 0:  # whichever it is: a lock of this pid, when it was another process's
            write(run, os.getpid(), 0.0)
        steps.wait()
        try:
            lock.acquire(run)
            won.put(number)
        except RunFolderError:
            pass
        steps.wait()  # held until all have tried


def test_of_many_that_find_a_stale_lock_one_gets_it(run: RunDir) -> None:
    context = multiprocessing.get_context("spawn")
    steps, won = context.Barrier(3, timeout=PATIENCE), context.Queue()
    processes = [context.Process(target=_contend, args=(str(run.path), steps, won)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(won.get(timeout=PATIENCE) for _ in range(ROUNDS)) == list(range(ROUNDS))
    assert won.empty()
    won.close()
    won.join_thread()
