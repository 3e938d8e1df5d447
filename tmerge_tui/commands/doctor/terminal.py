"""The terminal that the wizard would open in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

from tmerge_tui.commands.doctor.finding import Finding, checked
from tmerge_tui.system import can_draw

NARROWEST, LOWEST = 80, 24
SYSTEMS = {"truecolor": "16 million", "256": "256", "standard": "16", "windows": "16", None: "none"}


def findings() -> Iterator[Finding]:
    yield finding()


def finding() -> Finding:
    """Size, colours and encoding; a problem where the wizard cannot open or will look broken."""
    term = os.environ.get("TERM", "")
    inside = [name for name, variable in (("tmux", "TMUX"), ("screen", "STY")) if os.environ.get(variable)]
    far = ["SSH"] if os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY") else []
    facts = {
        "TERM": term,
        "COLORTERM": os.environ.get("COLORTERM"),
        "NO_COLOR": bool(os.environ.get("NO_COLOR")),
        "program": os.environ.get("TERM_PROGRAM"),
        "inside": inside + far,
        "encoding": sys.stdout.encoding if sys.stdout is not None else None,
        "locale": locale(),
    }
    here = f"TERM={term or 'unset'}" + (f", in {' over '.join(inside + far)}" if inside or far else "")
    if not (sys.stdin.isatty() and can_draw()):
        advice = "use tmerge --batch, or an interactive terminal"
        return checked("terminal", f"none for the wizard ({here})", advice, **facts)
    columns, rows = window()
    colours = SYSTEMS.get(system := colour_system(), str(system))
    off = " (NO_COLOR is set)" if facts["NO_COLOR"] else ""
    encoding = "UTF-8" if is_utf8() else f"{locale() or facts['encoding']}, not UTF-8"
    found = f"{columns} x {rows}, {colours} colours{off}, {encoding}, {here}"
    facts |= {"columns": columns, "rows": rows, "colours": system}
    return checked("terminal", found, "; ".join(to_change(columns, rows, system, inside)), **facts)


def to_change(columns: int, rows: int, system: str | None, inside: list[str]) -> list[str]:
    """What to change, each for itself."""
    told = []
    if columns < NARROWEST or rows < LOWEST:
        told.append(f"make the window {NARROWEST} x {LOWEST} at least")
    if not is_utf8():
        told.append("set LC_ALL=C.UTF-8 before the terminal starts: lines and symbols are garbled without it")
    if system in ("standard", None) and not os.environ.get("NO_COLOR"):
        if inside:
            told.append("in tmux: set -g default-terminal tmux-256color; in screen: term screen-256color")
        else:
            told.append("set TERM=xterm-256color if this terminal has more than 16 colours")
    return told


def window() -> tuple[int, int]:
    """Columns and rows, as the wizard takes them: from COLUMNS and LINES, else from the terminal."""
    try:
        there = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        there = os.terminal_size((NARROWEST, LOWEST))
    size = shutil.get_terminal_size(there)  # stdout may lead into a file
    return size.columns, size.lines


def colour_system() -> str | None:
    """As rich tells it, which draws the wizard: truecolor, 256, standard, windows, or None."""
    from rich.console import Console

    return Console(stderr=True).color_system


def locale() -> str:
    """The setting that decides on the encoding; empty when none is made."""
    return os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""


def is_utf8() -> bool:
    """Of the terminal, as far as its settings tell. Without any, programs here write UTF-8, which terminals read."""
    if sys.platform == "win32":
        return True
    _, dot, encoding = locale().partition(".")
    if dot:
        return encoding.lower().partition("@")[0].replace("-", "") == "utf8"
    multiplexed = bool(os.environ.get("TMUX") or os.environ.get("STY"))
    return not (multiplexed and locale() in ("", "C", "POSIX"))  # these write _ for every line then
