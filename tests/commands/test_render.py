"""What a person sees of a run, with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tmerge_tui.commands.render import EVERY, Bars, Lines, Silent, renderer
from tmerge_tui.events import (
    Event,
    Line,
    Logged,
    Metric,
    RunStarted,
    StageFinished,
    StageProgressed,
    StageStarted,
    Warned,
)

START = RunStarted("runs/x", 1, "cpu", {}, [{"name": "t", "label": "Solving [transport]", "weight": 1.0}])
EVENTS: list[tuple[float, Event]] = [
    (0, START),
    (0, StageStarted("t", "Solving [transport]", 1000, "pairs")),
    (1, StageProgressed("t", 100, 1000, "pairs", 100.0)),
    (EVERY + 1, StageProgressed("t", 600, 1000, "pairs", 100.0, "layer 3")),
    (EVERY + 1.1, StageProgressed("t", 610, 1000, "pairs", 100.0)),
    (EVERY + 2, Warned("solver", "a [bold] fallback")),
    (EVERY + 3, Logged("debug", "not for people")),
    (EVERY + 4, StageFinished("t", 10.0, "done")),
    (EVERY + 5, Metric("bits_per_byte", "fused", 2.17, "bits per byte", 0.1, -0.001, -0.002, 0.0005)),
]


def console(terminal: bool, width: int = 100) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=width, highlight=False, color_system=None), out


def test_lines_without_a_terminal() -> None:
    plain, out = console(False)
    screen = renderer(plain, quiet=False)
    assert isinstance(screen, Lines)
    for n, (t, event) in enumerate(EVENTS):
        screen.show(Line(n, t, event))
    screen.close()
    text = out.getvalue()
    assert text.splitlines() == [
        "[   0:00   0 %] run runs/x on cpu",
        "[   0:00   0 %] Solving [transport]: 1,000 pairs",
        "[   0:06  60 %]   600/1,000 pairs  100 pairs/s  eta 0:04  layer 3",
        "[   0:07  61 %] warning: solver: a [bold] fallback",
        "[   0:09 100 %] Solving [transport]: done in 10 s",
        "[   0:10 100 %] fused alpha 0.1: 2.1700 bits per byte  (-0.0010 to the target, 95 % -0.0020 to +0.0005)",
    ]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: EVENTS[-1][0])
    for width in (60, 80, 120):
        tty, out = console(True, width)
        screen = renderer(tty, quiet=False)
        assert isinstance(screen, Bars)
        screen.tick()  # before the first event
        for n, (t, event) in enumerate(EVENTS):
            screen.show(Line(n, t, event))
            screen.tick()
        screen.close()
        text = out.getvalue()
        assert "warning: solver: a [bold] fallback" in text and "not for people" not in text
        assert "1,000/1,000 pairs" in text and "whole run" in text and "100 %" in text
        assert max(len(line) for line in text.split("\r")[-1].splitlines()) <= width


def test_quiet_and_dumb() -> None:
    assert isinstance(renderer(console(True)[0], quiet=True), Silent)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(renderer(dumb, quiet=False), Lines)
