"""Checks of the wizard, driven by keys in a terminal that tmux draws: from the first run to a result."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smoke_box import Box, Command, Failed, NotChecked, expect, until
from smoke_merge import World, same_merge

TERM = "tmux-256color"
RGB = re.compile(r"[34]8;2;(\d+);(\d+);(\d+)")
REPORTING = "#{alternate_on} #{mouse_any_flag} #{cursor_flag}"  # 0 0 1 in a terminal that was given back
HOME = "This machine"
TERMINFO = ("/etc/terminfo", "/lib/terminfo", "/usr/lib/terminfo", "/usr/share/terminfo")


class Screen:
    """One tmux session of its own server, with a shell that has started a command."""

    def __init__(self, box: Box, command: Command, columns: int, rows: int) -> None:
        tmux = shutil.which("tmux")
        if tmux is None:
            raise NotChecked("no tmux")
        self.socket = box.folder / f"tmux{time.monotonic_ns()}"
        self.tmux = [tmux, "-S", str(self.socket), "-f", "/dev/null", "-u"]
        line = f"cd {shlex.quote(str(box.work))}; {command.shell}; echo left with $?; read end"
        self("new-session", "-d", "-x", str(columns), "-y", str(rows), line)

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self.tmux, *words], capture_output=True, encoding="utf-8")
        if done.returncode:
            raise Failed(f"tmux {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def text(self, *options: str) -> str:
        return self("capture-pane", "-p", *options)

    def keys(self, *keys: str) -> None:
        self("send-keys", *keys)

    def shows(self, words: str, seconds: float = 60.0) -> str:
        """The screen once it holds `words`, line breaks aside. Raises Failed when it never does."""
        seen = ""

        def there() -> bool:
            nonlocal seen
            seen = self.text()
            expect("Traceback" not in seen and "left with 1" not in seen, f"the wizard has failed:\n{seen}")
            return words in " ".join(seen.split())

        if not until(there, seconds, 0.1):
            raise Failed(f"no {words!r} on the screen within {seconds:.0f} s:\n{seen}")
        return seen

    def leaves(self) -> None:
        """Ctrl-Q ends the wizard and gives the terminal back as it was."""
        self.keys("C-q")
        after = self.shows("left with 0", 10)
        expect(HOME not in after, f"the wizard's screen is left behind:\n{after}")
        state = self("display-message", "-p", REPORTING).strip()
        expect(state == "0 0 1", f"alternate screen, mouse, cursor: {state} where 0 0 1 is right")


@contextmanager
def opened(world: World, columns: int, rows: int, env: dict[str, str], mounts: str = "") -> Iterator[Screen]:
    """The wizard on a screen of that size; killed at the end where it has not left."""
    screen = Screen(world.box, world.box.command(env=env, mounts=mounts), columns, rows)
    try:
        yield screen
    finally:
        subprocess.run([*screen.tmux, "kill-server"], capture_output=True)


def wizard(world: World) -> str:
    """80x24, first run ever: the demo from Home to its result while the engine is being unpacked; Ctrl-Q."""
    box = world.box
    began = time.monotonic()
    with opened(world, 80, 24, box.environment(box.new_home(), TERM=TERM)) as screen:
        screen.shows("unpacking the engine, once:")
        home = screen.shows(HOME)
        painted = time.monotonic() - began
        expect("missing" not in home, f"Home misses something:\n{home}")
        return f"first screen after {painted:.1f} s; {to_the_result(world, screen)}"


def wizard_wide(world: World) -> str:
    """160x50 and colours, the engine unpacked before: the demo from Home to its result."""
    world.engine  # noqa: B018
    with opened(world, 160, 50, world.box.environment(TERM=TERM, COLORTERM="truecolor")) as screen:
        home = screen.shows(HOME)
        expect("unpacking" not in home, f"unpacked again:\n{home}")
        expect(any(len(set(found.groups())) > 1 for found in RGB.finditer(screen.text("-e"))), "no colours")
        return to_the_result(world, screen)


def to_the_result(world: World, screen: Screen) -> str:
    """The demo by keys; its models are those of `tmerge demo`."""
    runs = world.box.work / "runs"
    before = set(runs.glob("*"))
    screen.keys("d")
    screen.shows("nothing has started yet")
    screen.shows("it can run", 120)
    screen.keys("C-n")
    screen.shows("See the result", 300)
    screen.keys("Enter")
    shown = " ".join(screen.shows("placebo: permuted").split())
    expect("2.0931" in shown and "better than the target" in shown, f"another result:\n{screen.text()}")
    screen.keys("Escape")
    screen.shows("✓ finished")
    screen.leaves()
    (run,) = set(runs.glob("*")) - before
    return same_merge(world.demo, run)


def no_colour(world: World) -> str:
    """NO_COLOR: shades of grey only, and the same words."""
    world.engine  # noqa: B018
    with opened(world, 80, 24, world.box.environment(TERM=TERM, COLORTERM="truecolor", NO_COLOR="1")) as screen:
        screen.shows(HOME)
        shades = {tuple(found.groups()) for found in RGB.finditer(screen.text("-e"))}
        expect(shades and all(len(set(shade)) == 1 for shade in shades), f"colours: {sorted(shades)}")
        screen.keys("?")
        screen.shows("Runs go on without this window")
        screen.keys("Escape")
        screen.leaves()
    return f"{len(shades)} shades"


def console(world: World) -> str:
    """TERM=linux, and no description of any terminal on the disk."""
    box = world.box
    world.engine  # noqa: B018
    env = box.environment(TERM="linux", TERMINFO="/nonexistent")
    places = [place for place in TERMINFO if Path(place).is_dir()]
    hide = "\n".join(f"{shutil.which('mount')} --bind {shlex.quote(str(box.nothing))} {place}" for place in places)
    with opened(world, 80, 24, env, "" if box.open_because else hide) as screen:
        screen.shows(HOME)
        screen.keys("n")
        screen.shows("Source · is only read")
        screen.leaves()
    return f"hidden: {', '.join(places)}" if not box.open_because else ""


CHECKS: dict[str, Any] = {"wizard": wizard, "wizard-wide": wizard_wide, "no-colour": no_colour, "console": console}
