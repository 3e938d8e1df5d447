"""The wizard's end of the helper process that answers questions about models.

The helper is `tmerge _probe`: it imports torch, which takes seconds, so it is started when the wizard opens and its
start hides behind the form. One JSON line a request, one a reply, and before it one for each event that is reported.
A helper that dies fails the requests it had and is started again by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from tmerge_tui import bundle, errors
from tmerge_tui.events import Line, decode
from tmerge_tui.system import APART, KILLED, kill
from tmerge_tui.worker.spawn import command, environment

LINE_LIMIT = 2**22  # bytes of one reply
STDERR_LINES = 40


class Probe:
    """Requests are answered in order; a cancelled one is taken back, or left to the helper to stop."""

    def __init__(self, argv: list[str] | None = None) -> None:
        self.argv = argv if argv is not None else [*command(), "_probe"]
        self.known: dict[str, tuple[int, Any, Any]] = {}  # model -> (age, where it was found, its facts)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._told: dict[int, Callable[[Line], None]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)

    def start(self) -> None:
        """Starts the helper unless it is there; returns at once."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())

    def another(self) -> Probe:
        """A helper of its own for long work, so that short questions need not wait behind it."""
        return Probe(self.argv)

    async def ask(self, call: str, told: Callable[[Line], None] | None = None, **args: Any) -> Any:
        """The helper's answer; `told` is called with what it reports meanwhile.

        Raises the TmergeError it reports, WorkerError when it dies.
        """
        self.start()
        starting = self._starting
        assert starting is not None
        await asyncio.shield(starting)
        number = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if told is not None:
            self._told[number] = told
        try:
            await self._send({"id": number, "call": call, "args": args})
            return await future
        except asyncio.CancelledError:
            with contextlib.suppress(errors.WorkerError):
                await self._send({"cancel": number})
            raise
        finally:
            self._waiting.pop(number, None)
            self._told.pop(number, None)

    def kill(self) -> None:
        """Ends the helper at once, whatever it is doing."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                kill(self._process.pid)

    async def _start(self) -> None:
        try:
            await asyncio.to_thread(bundle.unpack)  # the program of argv, in a one-file executable
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_LIMIT,
                start_new_session=True,
                creationflags=APART,
                env=environment(),
            )
        except errors.TmergeError:
            self._starting = None
            raise
        except OSError as error:
            self._starting = None
            raise errors.WorkerError(f"the helper process cannot be started: {error}") from error
        for job in (self._read(self._process), self._drain(self._process)):
            task = asyncio.get_running_loop().create_task(job)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, message: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            raise errors.WorkerError("the helper process has ended", hint="try again: it is started anew")
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise errors.WorkerError("the helper process has ended", hint="try again: it is started anew") from error

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            try:
                reply = json.loads(line)
            except ValueError:
                self._stderr.append(line.decode(errors="replace").rstrip())
                continue
            future = self._waiting.get(reply.get("id"))
            if future is None or future.done():
                continue
            if "event" in reply:
                event = decode(str(reply["event"]))
                if event is not None and reply["id"] in self._told:
                    self._told[reply["id"]](event)
            elif "error" in reply:
                future.set_exception(_error(reply["error"]))
            else:
                future.set_result(reply.get("result"))
        code = await process.wait()
        self._process, self._starting = None, None
        last = next((line for line in reversed(self._stderr) if line.strip()), "")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(errors.WorkerError(_ended(code, last), hint="try again: it is started anew"))

    async def _drain(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(2**16):
            self._stderr.extend(chunk.decode(errors="replace").splitlines())


def _ended(code: int, last: str) -> str:
    if code == KILLED:
        return "the helper process was killed (often: out of memory)"
    return f"the helper process ended with code {code}" + (f": {last}" if last else "")


def _error(said: dict[str, str]) -> errors.TmergeError:
    """The error the helper reports, as the class it had there."""
    kind = getattr(errors, str(said.get("kind")), errors.WorkerError)
    if not (isinstance(kind, type) and issubclass(kind, errors.TmergeError)) or issubclass(kind, errors.ProblemsError):
        kind = errors.TmergeError
    return kind(said.get("found", ""), said.get("expected", ""), said.get("hint", ""))
