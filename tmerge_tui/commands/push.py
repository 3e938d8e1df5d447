"""`tmerge push`: a finished run to the Hub, after asking."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tmerge_tui import stopping
from tmerge_tui.commands.output import data, say
from tmerge_tui.errors import UsageError
from tmerge_tui.quantities import size
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.follow import REPORT
from tmerge_tui.worker.summary import verdict_folder


def push(path: str, repo: str, model: str | None, public: bool, yes: bool) -> int:
    """Uploads `model`, a folder in the run, or the one that its verdict is about, and prints the page.

    1 when the answer is no. Raises UsageError where no one can be asked.
    """
    run = RunDir.open(path)
    if model is None:
        model = verdict_folder(run) if (run.path / REPORT).is_file() else run.model.name
    with ExitStack() as stack:
        with stopping.held():
            place = stack.enter_context(TemporaryDirectory(prefix="tmerge-push-"))
            stack.enter_context(stopping.undone(lambda: shutil.rmtree(place)))
        return _push(run, repo, model, public, yes, Path(place))


def _push(run: RunDir, repo: str, model: str, public: bool, yes: bool, place: Path) -> int:
    from tmerge_tui.engine.report.redact import write_public_report
    from tmerge_tui.hub.push import account, pack
    from tmerge_tui.hub.push import push as upload

    parcel = pack(run.path, repo, model, write_public_report(run, place))
    who = account()
    seen = "public" if public else "private"
    what = f"upload {len(parcel.files)} files ({size(parcel.bytes)}) to {repo} as {who}; a new repository is {seen}"
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"would {what}", "--yes, since no one can be asked here", "add --yes")
        say(f"{what}.")
        print("Go ahead? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("nothing was uploaded")
            return 1
    data(upload(parcel, public, say))
    return 0
