"""The terminal: size, colours, encoding, what it is inside of."""

from __future__ import annotations

import os
import sys

import pytest

from tmerge_tui.commands.doctor import terminal
from tmerge_tui.commands.doctor.finding import Finding, Level

UNSET = ("NO_COLOR", "TMUX", "STY", "SSH_CONNECTION", "SSH_TTY", "LC_ALL", "LC_CTYPE", "FORCE_COLOR", "TERM_PROGRAM")


@pytest.fixture(autouse=True)
def _good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 120 x 40 with true colours and UTF-8."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    settings = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "en_US.UTF-8"}
    for name, value in {**settings, "COLUMNS": "120", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def with_(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Finding:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return terminal.finding()


def test_a_good_one() -> None:
    told = terminal.finding()
    assert told.level is Level.OK, told
    assert told.found == "120 x 40, 16 million colours, UTF-8, TERM=xterm-256color"


def test_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told = with_(monkeypatch, TERM="dumb")
    assert told.level is Level.PROBLEM and told.found == "none for the wizard (TERM=dumb)" and "--batch" in told.advice
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert terminal.finding().found == "none for the wizard (TERM=xterm)"


def test_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_(monkeypatch, COLUMNS="79").advice == "make the window 80 x 24 at least"
    assert with_(monkeypatch, COLUMNS="80", LINES="24").level is Level.OK


def test_few_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "256 colours" in with_(monkeypatch, COLORTERM="").found
    told = with_(monkeypatch, TERM="vt100")
    assert "16 colours" in told.found and "TERM=xterm-256color" in told.advice
    told = with_(monkeypatch, TERM="screen", TMUX="/tmp/tmux-0/default,1,0")
    assert "in tmux" in told.found and "default-terminal tmux-256color" in told.advice
    told = with_(monkeypatch, NO_COLOR="1")
    assert "(NO_COLOR is set)" in told.found and told.advice == "", "that is a choice"


@pytest.mark.parametrize(
    ("settings", "good"),
    [
        ({"LANG": "de_DE.UTF-8"}, True),
        ({"LANG": "de_DE.utf8@euro"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LC_ALL": "C.UTF-8", "LANG": "de_DE.ISO-8859-1"}, True),
        ({"LANG": "C"}, True),  # programs write UTF-8 there, and terminals read it
        ({"LANG": "C", "TMUX": "x"}, False),  # tmux writes _ for each line of a frame
        ({"LANG": "", "STY": "x"}, False),
    ],
)
def test_encodings(settings: dict[str, str], good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = with_(monkeypatch, **settings)
    assert terminal.is_utf8() is good and ("LC_ALL=C.UTF-8" in told.advice) is not good


def test_far_away_and_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    told = with_(monkeypatch, SSH_CONNECTION="192.0.2.7 50000 192.0.2.8 22", STY="1.pts", TERM="screen-256color")
    assert told.found.endswith("TERM=screen-256color, in screen over SSH") and "192.0.2" not in str(told)


def test_the_size_of_the_terminal_when_stdout_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import termios

    main, side = pty.openpty()
    with os.fdopen(main), os.fdopen(side, "w") as screen:
        termios.tcsetwinsize(side, (50, 160))
        for name in ("COLUMNS", "LINES"):
            monkeypatch.delenv(name)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", screen)
            patch.setattr(sys, "__stdout__", None)
            seen = terminal.window()
    assert seen == (160, 50)
