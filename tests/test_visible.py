"""Nothing from elsewhere reaches a terminal raw: on the command line, and in the wizard.

Reference: what a terminal obeys (ECMA-48) and what reorders a line (Unicode's bidirectional controls).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.command_line import inside
from tmerge_tui.commands.output import data
from tmerge_tui.commands.render import Bars, Lines
from tmerge_tui.events import Line, Logged, StageStarted, Warned
from tmerge_tui.visible import visible, without

ESC = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[31mred\x9b5A\x7f\u202egnp"
MARKUP = "[red]evil[/red] [@click=app.quit]x[/] :boom: [/]"
UNSAFE = [chr(i) for i in (*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2029, 0xD800, 0xE0041)]


@pytest.mark.parametrize("character", UNSAFE, ids=[f"{ord(c):x}" for c in UNSAFE])
def test_every_unsafe_character_is_written_out_as_json_writes_it(character: str) -> None:
    assert json.loads(f'"{visible(character)}"') == character and visible(character).isascii()
    assert without(f"a{character}b") == "ab"


@pytest.mark.parametrize("text", ["two\nlines\tand a tab", "ṣàngó 中文 𝕏 می‌خواهم 👩‍👩‍👧", "\u200fשלום\u200e"])
def test_text_of_any_language_is_left_alone(text: str) -> None:
    assert visible(text) == without(text) == text
    assert visible("from Windows\r\nthe next") == "from Windows\nthe next"


def test_json_stays_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": f"\\{ESC}\r\\\u2028", "name": "𝕏"}
    data(json.dumps(value, ensure_ascii=False))
    out = capsys.readouterr().out
    assert json.loads(out) == value and without(out) == out


@pytest.mark.parametrize("screen", [Lines, Bars])
def test_a_run_on_the_command_line(screen: type[Lines] | type[Bars]) -> None:
    told = io.StringIO()
    shown = screen(Console(file=told, force_terminal=screen is Bars, color_system=None, width=300, highlight=False))
    try:
        for place, event in enumerate(
            (StageStarted("s", f"label {ESC}", 3, f"u{ESC}"), Warned("here", ESC + MARKUP), Logged("info", ESC))
        ):
            shown.show(Line(place, 0.0, event))
        shown.tick()
    finally:
        shown.close()
    text = told.getvalue()
    assert "\\u001b]52;c" in text and MARKUP in text
    assert "\x1b]52" not in text and "\x1b[31m" not in text and "\x9b" not in text and "\u202e" not in text


def test_names_errors_and_usage_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["watch", f"no{ESC}run"], [f"com{ESC}mand"], ["check", f"no{ESC}recipe.yaml"], [f"{ESC}.yaml"]):
        code, out, err = inside(tmp_path, monkeypatch, capsys, *arguments)
        assert code != 0 and without(out + err) == out + err, arguments
        assert "\\u001b" in err or "\\x1b" in err
