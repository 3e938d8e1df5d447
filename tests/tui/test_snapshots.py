"""The screens as text, at the smallest and at a wide size; and their colours in every theme.

A snapshot that differs is written beside the old one as `.new`; TMERGE_SNAPSHOTS=update takes the new ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tui.doubles import FakeProbe, follows, screen_text, settle, until
from tests.tui.fakes import write_run
from tmerge_tui.recipe import recipe
from tmerge_tui.tui import catalog, this_machine
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.widgets import gauges

FOLDER = Path(__file__).parent / "snapshots"
FOUND = [
    catalog.Found("org/verses", "hub", downloads=1_520_000, licence="cc0-1.0", modified="2026-01-02"),
    catalog.Found("org/letters-and-diaries-of-the-nineteenth-century", "hub", downloads=12, gated=True),
    catalog.Found("someone/verse-500k", "hub", downloads=340, licence="cc-by-nc-sa-4.0", modified="2025-11-30"),
]
SIZES = [(80, 24), (160, 50)]
SCREENS = ("home", "models", "data", "data-search", "method", "review", "run", "result")
DECORATION = " ─│╭╮╰╯╸╺━▏›▁▂▃▄▅▆▇▀"
BARE = "░█◆▔·" + "".join(map(chr, range(0x2800, 0x2900)))  # bars, thumbs of scrollbars, dots of charts
MACHINE = [
    ("GPU", "NVIDIA H200, 150 GB"),
    ("CPU", "16 cores, x86_64"),
    ("Memory", "120 GB free of 128 GB"),
    ("Disk here", "1.2 TB free of 2.0 TB"),
    ("Hub", "not logged in"),
    ("Versions", "tmerge 0.1.0, torch 2.13.0"),
]


async def open_screen(app: TmergeApp, pilot, name: str, models: dict[str, str]) -> None:
    """A screen in a state that depends on nothing but this file."""
    if name in ("run", "result"):
        run = write_run(Path("done"))
        app.show_run(run.path) if name == "run" else app.show_result(run.path)
    elif name != "home":
        for role, path in models.items():
            app.change(f"{role}.model", Path(path).name)
        Path("text.txt").write_text("two rivers meet\n" * 9)
        app.change("calibration.path", "text.txt")
        app.goto(name.removesuffix("-search"))
    if name == "data-search":
        await settle(pilot)
        app.screen.query_one("#origin").focus()
        await pilot.press("right", "tab", *"e")
        await settle(pilot, 0.2)
        await pilot.press("down")
    await settle(pilot, 0.2)
    await until(pilot, lambda: not follows(pilot))
    await pilot.pause(0.1)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch, models: dict[str, str]) -> dict[str, str]:
    """Nothing of this machine, this minute or this folder on the screen."""
    monkeypatch.setattr(this_machine, "facts", lambda folder: MACHINE)
    monkeypatch.setattr(gauges, "full_load", lambda: 200)
    monkeypatch.setattr(catalog, "search_datasets", lambda query, limit: FOUND)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr(recipe, "with_absolute_paths", lambda made: made)  # they wrap where this folder's name ends
    for path in models.values():
        Path(path).rename(Path.cwd() / Path(path).name)
    return models


def compare(name: str, text: str) -> None:
    path = FOLDER / name
    fresh = path.with_suffix(".new")
    text = text.replace(str(Path.cwd()), "/work").rstrip() + "\n"
    if os.environ.get("TMERGE_SNAPSHOTS") == "update":
        path.write_text(text, encoding="utf-8")
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        fresh.write_text(text, encoding="utf-8")
        pytest.fail(f"{path.name} differs; compare it with {fresh.name}, or run with TMERGE_SNAPSHOTS=update")
    fresh.unlink(missing_ok=True)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", SCREENS)
async def test_screen(app: TmergeApp, still: dict[str, str], name: str, size: tuple[int, int]) -> None:
    async with app.run_test(size=size) as pilot:
        await open_screen(app, pilot, name, still)
        compare(f"{name}-{size[0]}x{size[1]}.txt", screen_text(app))


@pytest.mark.parametrize("name", ("home", "models", "data", "method", "review", "run", "result"))
async def test_smallest_screen(app: TmergeApp, still: dict[str, str], name: str) -> None:
    async with app.run_test(size=(60, 20)) as pilot:
        await open_screen(app, pilot, name, still)
        text = screen_text(app)
        compare(f"{name}-60x20.txt", text)
        assert "f1 Help" in text and "too small" not in text


@pytest.mark.parametrize("look", ["tmerge-dark", "tmerge-light", "no-colour"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
async def test_picture(
    probe: FakeProbe, still: dict[str, str], size: tuple[int, int], look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run screen, which has every kind of drawing, as the picture the app makes of itself."""
    app = looking(look, probe, monkeypatch)
    async with app.run_test(size=size) as pilot:
        await open_screen(app, pilot, "run", still)
        compare(f"run-{size[0]}x{size[1]}-{look}.svg", app.export_screenshot(title="tmerge"))


@pytest.mark.parametrize("look", ["tmerge-dark", "tmerge-light"])
async def test_every_text_of_every_screen_can_be_read(
    probe: FakeProbe, still: dict[str, str], look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed from what is painted, alpha and all: WCAG's 4.5, of everything but lines, bars and maps."""
    app = looking(look, probe, monkeypatch)
    faint: dict[str, float] = {}
    async with app.run_test(size=(160, 50)) as pilot:
        for name in SCREENS:
            await open_screen(app, pilot, name, still)
            for strip in app.screen._compositor.render_strips():
                for segment in strip:
                    text = segment.text.strip(DECORATION + BARE)
                    if text and segment.style and contrast(segment.style) < 4.5:
                        faint[f"{name}: {text}"] = contrast(segment.style)
    assert not faint


@pytest.mark.parametrize("look", ["tmerge-dark", "tmerge-light", "ansi-dark", "no-colour"])
async def test_colours(probe: FakeProbe, still: dict[str, str], look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text of the result screen stands out from its ground: the contrast ratio of WCAG is at least 3."""
    app = looking(look, probe, monkeypatch)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_screen(app, pilot, "result", still)
        strips = app.screen._compositor.render_strips()
        for line_filter in app._filters:
            strips = [strip.apply_filter(line_filter, app.screen.background_colors[1]) for strip in strips]
        styled = [(s.text, s.style) for strip in strips for s in strip if s.style and s.text.strip(DECORATION)]
        assert "Fusion" in screen_text(app)
        if look == "no-colour":
            inks = {style.color.triplet for _, style in styled if style.color and style.color.triplet}
            assert inks and all(len(set(ink)) == 1 for ink in inks), "grey only"
        faint = {text for text, style in styled if contrast(style) < 3 and not style.dim}
        assert not faint


def looking(look: str, probe: FakeProbe, monkeypatch: pytest.MonkeyPatch) -> TmergeApp:
    """The app in a theme, or with NO_COLOR set."""
    if look == "no-colour":
        monkeypatch.setenv("NO_COLOR", "1")
    app = TmergeApp(probe=probe)
    app.animation_level = "none"
    if look != "no-colour":
        app.theme = look
    return app


def contrast(style) -> float:
    """WCAG's ratio of the luminances of ink and ground; 21 where the terminal's own colours are used."""
    if style.color is None or style.bgcolor is None or not (style.color.triplet and style.bgcolor.triplet):
        return 21.0

    def luminance(colour) -> float:
        parts = [c / 255 for c in colour.triplet]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(style.color), luminance(style.bgcolor)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
