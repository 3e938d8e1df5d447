"""What the wizard shows is text: no markup and nothing that a terminal obeys comes from a name, a log or an error.

Reference: the lines that the screen sends to the terminal.
"""

from __future__ import annotations

import json
from pathlib import Path

from textual.app import App

import tmerge_tui.tui
from tests.test_visible import ESC, MARKUP
from tests.tui.doubles import settle
from tests.tui.fakes import write_run
from tmerge_tui.errors import StorageError
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.screens.compare import CompareScreen
from tmerge_tui.tui.screens.models import ModelsScreen
from tmerge_tui.tui.screens.result import ResultScreen
from tmerge_tui.visible import without


def drawn(app: App[int]) -> str:
    """Everything that the screen sends to the terminal as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(part.text for part in line if not part.control) for line in lines)


async def test_the_wizard_shows_names_and_errors_as_they_are(app: TmergeApp, tmp_path: Path) -> None:
    """A run folder, its log and its report whose every text tries to break out."""
    hostile = f"{MARKUP}{ESC}"
    run = write_run(tmp_path / "done [b]x[/b]").path
    report = json.loads((run / "report.json").read_text())
    report["verdict"]["headline"] = f"{hostile} headline"
    report["verdict"]["sentences"] = [hostile]
    (run / "report.json").write_text(json.dumps(report))
    async with app.run_test(size=(160, 50)) as pilot:
        app.show_result(run)
        await settle(pilot)
        assert isinstance(app.screen, ResultScreen)
        app.notify(str(StorageError(hostile)), title=hostile)
        await settle(pilot)
        text = drawn(app)
        assert "[red]evil[/red]" in text and "headline" in text and "done [b]x[/b]" in text
        assert without(text) == text and "\x1b" not in text


async def test_titles_tables_and_a_recipe_that_cannot_run(app: TmergeApp, tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name).path for name in ("[red]a", "[b]b"))
    async with app.run_test(size=(160, 50)) as pilot:
        app.push_screen(CompareScreen(first, second))
        await settle(pilot)
        assert "[red]a" in drawn(app) and "[b]b" in drawn(app)
        app.pop_screen()
        app.goto("models")
        await settle(pilot)
        assert isinstance(app.screen, ModelsScreen)
        app.screen.card("source").choose("/models/[red]evil")
        await settle(pilot)
        assert "Source · [red]evil" in drawn(app)
        app.change("output", "[red]x[/red]/[/]")
        app.goto("review")
        await settle(pilot)
        assert "This recipe cannot run yet" in drawn(app)


def test_only_one_file_knows_textuals_own_static() -> None:
    """Its default reads markup out of every string."""
    folder = Path(tmerge_tui.tui.__file__).parent
    lines = ((path.name, line) for path in folder.rglob("*.py") for line in path.read_text().splitlines())
    known = [name for name, line in lines if "Static" in line and line.startswith("from textual.widgets")]
    assert known == ["static.py"]
