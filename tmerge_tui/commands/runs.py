"""`tmerge watch`, `cancel` and `report`: runs that exist."""

from __future__ import annotations

import json
import shlex

from tmerge_tui import stopping
from tmerge_tui.commands.batch import Options, conclude, result, show
from tmerge_tui.commands.output import data, say
from tmerge_tui.errors import RunFolderError
from tmerge_tui.events import RunFinished, RunStarted
from tmerge_tui.run_folder import RunDir
from tmerge_tui.visible import visible
from tmerge_tui.worker.follow import EventFile, Follower, later_attempt, state_of
from tmerge_tui.worker.follow import cancel as stop


def watch(path: str, as_json: bool) -> int:
    """Follows the run, from its last start; its exit code. Ctrl-C leaves it running."""
    run = RunDir.open(path)
    if state_of(run) == "new":
        raise RunFolderError(f"{path} has not been started", "a run with events", "start it with `tmerge --batch`")
    options = Options(json=as_json)
    stopping.explain(visible(f"no longer watching; the run goes on (stop it with `tmerge cancel {shlex.quote(path)}`)"))
    follower, start = Follower(run), _last_start(run)
    with stopping.held():  # the terminal is left as it was
        ended = show(follower, options, skip=start)
        if ended is None:
            return stopping.asked() or 0
        note = later_attempt(run)
        if note and not as_json:
            say(f"note: {note}")
            return _as_finished(run)
        return conclude(run, ended, options)


def _as_finished(run: RunDir) -> int:
    """Prints the result of a finished run on which something was tried later."""
    file, last = EventFile(run.events), None
    while not file.caught_up():
        last = next((e.event for e in reversed(file.read_new()) if isinstance(e.event, RunFinished)), last)
    if last is not None:
        for told in result(last):
            data(told)
    return 0


def cancel(path: str) -> int:
    """Stops the run. Raises RunFolderError when none is going on."""
    run = RunDir.open(path)
    with stopping.held():  # asked and not gone, it has to be killed
        stopped = stop(run)
    if not stopped:
        raise RunFolderError(
            f"no run is going on in {path} (it is {state_of(run)})",
            "a running one",
            "`tmerge watch` shows how it ended",
        )
    data(f"stopped {path}; the same command continues where it stopped")
    return 0


def report(path: str) -> int:
    """Renders the report again. Raises RunFolderError when the run has none."""
    run = RunDir.open(path)
    try:
        results = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} has no report.json (it is {state_of(run)})", "a finished run") from error
    except ValueError as error:
        raise RunFolderError(
            f"{path}/report.json is not JSON: {error}", "a report that a run wrote", "run the recipe again"
        ) from error
    from tmerge_tui.engine.report.render import write_report

    with stopping.held():
        write_report(results, run)
    data(results["verdict"]["headline"])
    data(f"report  {run.path / 'report.html'}")
    return 0


def _last_start(run: RunDir) -> int:
    """Number of the event with which the last start began; 0 when there is none."""
    file, start = EventFile(run.events), 0
    while not file.caught_up():
        for line in file.read_new():
            if isinstance(line.event, RunStarted):
                start = line.seq
    return start
