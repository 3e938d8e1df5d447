"""The wizard's helper process, `tmerge _probe`: answers questions that need torch, so that the screen never imports it.

JSON lines. On stdin {"id", "call", "args"} or {"cancel": id}; on stdout {"id", "result"} or {"id", "error"} with the
error's kind, found, expected and hint, and before it any number of {"id", "event"} with a line of events.py. Requests
are answered one after another; a cancelled one that waits is dropped, a running one stops at its next look at
`Request.cancelled`. Stray output of libraries goes to stderr. The end of stdin ends the process at once, whatever it
is doing: who asked is gone.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TextIO

from tmerge_tui.errors import TmergeError
from tmerge_tui.events import Event, StageProgressed, encode
from tmerge_tui.system import write_utf8

Answer = Callable[["Request"], Any]


class Cancelled(Exception):
    """The one who asked does not want to know any more."""


@dataclass
class Request:
    id: int
    call: str
    args: dict[str, Any]
    stop: threading.Event = field(default_factory=threading.Event)
    told: Callable[[str], None] = lambda line: None  # takes the events of long work, as lines
    count: int = 0  # of them

    @property
    def cancelled(self) -> bool:
        return self.stop.is_set()

    def check(self) -> None:
        """Raises Cancelled; called between pieces of work."""
        if self.cancelled:
            raise Cancelled

    def tell(self, event: Event) -> None:
        """Reports progress. Raises Cancelled, so that work which reports can be ended."""
        self.check()
        self._report(event)

    def read(self, done: int, total: int) -> None:
        """Reports how far the text is read. Never ends it: what has been read serves the next question too."""
        self._report(StageProgressed("text", done, total, "samples", 0.0))

    def _report(self, event: Event) -> None:
        self.told(encode(event, self.count, time.time()))
        self.count += 1


def main() -> NoReturn:
    """Serves until stdin ends."""
    write_utf8()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like a reply
    sys.stdout = sys.stderr
    requests: queue.Queue[Request] = queue.Queue()
    waiting: dict[int, Request] = {}
    threading.Thread(target=_listen, args=(sys.stdin, requests, waiting), name="stdin", daemon=True).start()
    from tmerge_tui.worker import questions  # seconds of imports, while requests already queue up

    def write(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply, ensure_ascii=False) + "\n")
        replies.flush()

    while True:
        request = requests.get()
        request.told = partial(_tell, write, request.id)
        reply = _answer(request, questions.ANSWERS)
        waiting.pop(request.id, None)
        if reply is not None:
            write(reply)


def _tell(write: Callable[[dict[str, Any]], None], number: int, line: str) -> None:
    write({"id": number, "event": line})


def _listen(stdin: TextIO, requests: queue.Queue[Request], waiting: dict[int, Request]) -> None:
    for line in stdin:
        try:
            message = json.loads(line)
            if "cancel" in message:
                request = waiting.get(message["cancel"])
                if request is not None:
                    request.stop.set()
                continue
            request = Request(int(message["id"]), str(message["call"]), dict(message.get("args") or {}))
        except (ValueError, KeyError, TypeError) as error:
            print(f"probe: not a request: {error}: {line[:200]}", file=sys.stderr)
            continue
        waiting[request.id] = request
        requests.put(request)
    os._exit(0)


def _answer(request: Request, known: Mapping[str, Answer]) -> dict[str, Any] | None:
    """The reply; None when it is not wanted any more."""
    try:
        request.check()
        if request.call not in known:
            raise TmergeError(f"no call {request.call!r}", ", ".join(known))
        return {"id": request.id, "result": known[request.call](request)}
    except Cancelled:
        return None
    except TmergeError as error:
        said = {"kind": type(error).__name__, "found": error.found, "expected": error.expected, "hint": error.hint}
    except Exception as error:  # a library's own: the screen shows it, the process goes on
        import traceback

        from tmerge_tui.hub.errors import scrub

        print(scrub("".join(traceback.format_exception(error))), file=sys.stderr)
        found = f"{type(error).__name__}: {scrub(str(error))}"
        said = {"kind": "WorkerError", "found": found, "expected": "", "hint": ""}
    return {"id": request.id, "error": said}
