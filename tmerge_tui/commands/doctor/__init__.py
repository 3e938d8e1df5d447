"""`tmerge doctor`: what tmerge sees of this machine, and what to do about what it lacks. Tokens are never shown.

From source and from the wheel everything is asked in this process. The terminal part of the one-file executable has no
torch: it asks its engine, when that is unpacked, with the hidden option `--torch`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tmerge_tui.commands.doctor import gpu, hub, packages, resources, terminal
from tmerge_tui.commands.doctor.finding import Finding, Level
from tmerge_tui.commands.output import data, say
from tmerge_tui.edition import edition
from tmerge_tui.hub.errors import scrub

VERSION = 1  # of the layout of --json


def doctor(as_json: bool = False, whoami: bool = False) -> int:
    """Prints the findings; 1 when something that tmerge needs is missing, else 0.

    `whoami` asks the Hub whose token it is; otherwise it is only asked for a sign of life, and not even that offline.
    """
    found = list(findings(whoami))
    wrong = sum(one.level in (Level.PROBLEM, Level.MISSING) for one in found)
    if as_json:
        shown = [asdict(one) for one in found]
        whole = {"version": VERSION, "tmerge": str(edition()), "problems": wrong, "findings": shown}
        data(json.dumps(_without_home(whole), indent=1, ensure_ascii=False))
    else:
        for line in lines(found):
            data(line)
        say(f"{wrong} problem{'s' if wrong != 1 else ''}, each with what to do below it" if wrong else "no problems")
    return int(any(one.level is Level.MISSING for one in found))


def torch_as_json() -> int:
    """Prints what torch says about itself, for a process that cannot import it."""
    data(json.dumps(asdict(gpu.look())))
    return 0


def findings(whoami: bool = False) -> Iterator[Finding]:
    """All of them, in the order in which they are shown."""
    asked = hub.Asking(whoami)  # waits for the network while torch is imported
    torch = gpu.torch_facts()
    yield from _whole("packages", packages.findings())
    yield from _whole("gpu", gpu.findings(torch))
    yield from _whole("resources", resources.findings())
    yield from _whole("hub", hub.findings(asked))
    yield from _whole("extras", packages.extras())
    yield from _whole("terminal", terminal.findings())


def _whole(what: str, found: Iterator[Finding]) -> Iterator[Finding]:
    """One part that fails, on a machine nobody has thought of, must not take the others with it."""
    try:
        yield from found
    except Exception as error:
        told = scrub(f"{type(error).__name__}: {error}").splitlines()[0]
        yield Finding(what, f"the rest is not known: {told}", "please report this with the whole output", Level.PROBLEM)


def lines(found: Iterable[Finding]) -> Iterator[str]:
    """For a person: `!` before what is wrong, and below it what to do."""
    for one in found:
        mark = "!" if one.level in (Level.PROBLEM, Level.MISSING) else " "
        yield _tilde(f"{mark} {one.what:<15} {one.found}")
        if one.advice:
            yield _tilde(f"  {'':<15} {one.advice}")


def _without_home(value: Any) -> Any:
    """The same nested value with `~` for the home folder, whose path names a person."""
    if isinstance(value, str):
        return _tilde(value)
    if isinstance(value, dict):
        return {key: _without_home(each) for key, each in value.items()}
    return [_without_home(each) for each in value] if isinstance(value, (list, tuple)) else value


def _tilde(text: str) -> str:
    try:
        home = str(Path.home())
    except RuntimeError:  # none is known
        return text
    return text.replace(home, "~") if len(home) > 1 else text
