"""What Windows and macOS do otherwise than Linux: processes that stand apart and are stopped, files that are in use.

A Windows process gets no SIGTERM that it could answer, so a worker is asked to stop by a file in its run folder. And
Windows renames, replaces and removes no file that some program has open.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STOPPING = (signal.SIGTERM, signal.SIGINT)
KILLED = -9  # return code of a process that SIGKILL has ended; on Windows no code tells of it
IN_USE = 1.0  # seconds that Windows is given until another program, often a virus scanner, has closed a file
LOOK = 0.05  # seconds between two looks for a request to stop

if sys.platform == "win32":
    import subprocess

    # A console of its own without a window: closing the terminal does not reach the process, and what it starts in turn
    # opens no window either. Popen's start_new_session is the same for POSIX and means nothing here.
    APART = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    BINARY = os.O_BINARY
    STOPPED_BY_FORCE = "TerminateProcess"
    HANGUP: tuple[signal.Signals, ...] = ()  # the terminal of this process is gone, or its shell
else:
    APART = 0
    BINARY = 0  # for os.open, which on Windows would write \r\n for \n
    STOPPED_BY_FORCE = "SIGKILL"
    HANGUP = (signal.SIGHUP,)


# processes


def hold_stop_signals() -> None:
    """Leaves SIGTERM and SIGINT to `await_stop`; SIGHUP is ignored. Called before any thread exists: all inherit it."""
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def await_stop(request: Path) -> str:
    """Waits until this process is asked to stop; how it was asked: the signal's name, or "request" on Windows."""
    if sys.platform == "win32":
        # Of a virtual environment, python.exe only starts the real one: its pid is all that the one who started it has.
        mine = {str(os.getpid()), str(os.getppid())}
        while _content(request) not in mine:
            time.sleep(LOOK)
        return "request"
    return signal.Signals(signal.sigwait(STOPPING)).name


def ask_to_stop(pid: int, request: Path) -> None:
    """SIGTERM to a process and its group; on Windows its pid in the file `request`, where it looks for it.

    Raises ProcessLookupError when it is gone.
    """
    if sys.platform == "win32":
        with suppress(OSError):  # a full disk: it will have to be killed
            request.write_text(str(pid), encoding="ascii")
    else:
        _send(pid, signal.SIGTERM)


def kill(pid: int) -> None:
    """Ends a process and its group, on Windows with all that it has started.

    Raises ProcessLookupError when it is gone.
    """
    if sys.platform == "win32":
        import psutil

        try:
            process = psutil.Process(pid)
            started = process.children(recursive=True)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(errno.ESRCH, "no such process", str(pid)) from error
        for one in (*started, process):
            with suppress(psutil.Error):  # it has ended, or is just ending
                one.kill()
        psutil.wait_procs(started, timeout=IN_USE)  # the worker may be one of them: see `await_stop`
    else:
        _send(pid, signal.SIGKILL)


def peak_memory() -> int:
    """The most main memory that this process has had, in bytes; the operating system keeps it."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# files


def insist(action: Callable[[], T]) -> T:
    """`action()`, which renames or removes a file; on Windows again for a second while some program has it open."""
    if sys.platform == "win32":
        deadline = time.monotonic() + IN_USE
        while time.monotonic() < deadline:
            with suppress(PermissionError):
                return action()
            time.sleep(0.01)
    return action()


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    if sys.platform == "win32":
        if path.is_dir():  # cannot be opened; NTFS keeps a journal of its names
            return
        handle = os.open(path, os.O_RDWR)  # what cannot be written cannot be synced either
    else:
        handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# the terminal


def can_draw() -> bool:
    """Whether there is a terminal that the wizard can draw on.

    Textual draws on standard error; on Windows on standard output, and TERM need not be set.
    """
    if sys.platform == "win32":
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def has_terminal() -> bool:
    """Whether standard input is a terminal that is still there: after a hang-up the number remains, and no answer."""
    if sys.platform == "win32":
        return sys.stdin.isatty()
    import termios

    try:
        termios.tcgetattr(0)
    except termios.error:
        return False
    return True


def write_utf8() -> None:
    """Makes output into a file or pipe UTF-8 on Windows, as it is elsewhere; there it would be the code page."""
    if sys.platform == "win32":
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def reader_left(error: OSError) -> bool:
    """Whether a write to standard output failed because nobody reads it any more."""
    return isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL)


def _content(request: Path) -> str:
    try:
        return request.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


if sys.platform != "win32":

    def _send(pid: int, number: signal.Signals) -> None:
        try:
            if os.getpgid(pid) == pid:
                os.killpg(pid, number)
            else:  # started by hand: its group is the user's shell
                os.kill(pid, number)
        except PermissionError as error:
            import psutil

            with suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    raise
            # macOS says so of a group that is nothing but zombies
            raise ProcessLookupError(errno.ESRCH, "no such process", str(pid)) from error


def open_to_others(path: Path) -> Path | None:
    """The first of `path` and the folders above it where another account than root could put something else in place.

    A group that is the user's own, as many systems give everyone one, counts as the user. None on Windows, whose
    folders of a user are closed to others.
    """
    if sys.platform == "win32":
        return None
    for place in (path.absolute(), *path.absolute().parents):
        try:
            known = place.stat()
        except OSError:
            continue  # not made yet: who may make it is asked above
        loose = stat.S_IWOTH if _own_group(known.st_gid) or place != path.absolute() else stat.S_IWOTH | stat.S_IWGRP
        sticky = place != path.absolute() and known.st_mode & stat.S_ISVTX  # as /tmp: no one moves what is another's
        if known.st_uid not in (0, os.getuid()) or (known.st_mode & loose and not sticky):
            return place
    return None


def _own_group(group: int) -> bool:
    if sys.platform == "win32":
        return True
    import grp
    import pwd

    try:
        return group == 0 or grp.getgrgid(group).gr_name == pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
