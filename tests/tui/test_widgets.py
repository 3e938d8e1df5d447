"""Names, ramp, matrix and chart as they are drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from tests.tui.doubles import screen_text
from tmerge_tui.tui import human, ramp
from tmerge_tui.tui.widgets import scores
from tmerge_tui.tui.widgets.chart import Chart, Series
from tmerge_tui.tui.widgets.matrix import EMPTY, Matrix, _scale
from tmerge_tui.tui.widgets.toggles import OneOf


@given(st.text(max_size=80), st.integers(2, 60))
def test_shortened_names_fit(text: str, width: int) -> None:
    assert len(human.shorten(text, width)) == min(len(text), width)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1), st.floats(0, 1))
def test_ramp_steps_are_in_range(value: float, a: float, b: float) -> None:
    assert 0 <= ramp.step(value, min(a, b), max(a, b)) < ramp.STEPS


def test_the_ramp_is_whole_in_every_mode() -> None:
    assert len(ramp.TRUE_COLOURS) == len(set(ramp.VIRIDIS)) == ramp.STEPS
    assert len(ramp.CUBE_COLOURS) == len(set(ramp.CUBE)) == ramp.STEPS
    assert ramp.colours("standard") is None
    inks = [ramp.GLYPHS.index(ramp.glyph(level)) for level in range(ramp.STEPS)]
    assert inks == sorted(inks) and inks[0] == 0 and inks[-1] == len(ramp.GLYPHS) - 1


@given(st.integers(0, 200), st.integers(1, 200))
def test_axes_show_every_index_or_an_even_sample(count: int, room: int) -> None:
    places = _scale(count, room)
    assert len(places) <= room
    assert places == sorted(places)
    if 0 < count <= room:
        assert sorted(set(places)) == list(range(count))


class One(App[None]):
    def __init__(self, widget: Matrix | Chart) -> None:
        super().__init__()
        self.widget = widget
        widget.styles.width, widget.styles.height = "1fr", "1fr"

    def compose(self) -> ComposeResult:
        yield self.widget


async def test_a_matrix_fills_in_cell_by_cell() -> None:
    matrix = Matrix(waiting="nothing yet")
    async with One(matrix).run_test(size=(60, 12)) as pilot:
        assert "nothing yet" in screen_text(pilot.app)
        matrix.show([[0.5, None], [None, None]], "costs")
        await pilot.pause()
        text = screen_text(pilot.app)
        assert text.splitlines()[0].startswith("costs")
        assert text.count("·") == 3 * 6 + 3 * 12 and "▀" in text, text
        assert matrix.levels == [[ramp.STEPS // 2, EMPTY], [EMPTY, EMPTY]]
        matrix.show([[0.5, 0.1], [0.9, 0.3]], "costs")
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "·" not in text and "0.1" in text and "0.9" in text, text
        assert "target ↓ source →" in text


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 200), (200, 3), (64, 64)])
@pytest.mark.parametrize("size", [(1, 1), (7, 4), (30, 9), (120, 40)])
async def test_a_matrix_of_any_shape_in_any_room(rows: int, columns: int, size: tuple[int, int]) -> None:
    matrix = Matrix()
    async with One(matrix).run_test(size=size) as pilot:
        matrix.show_cells(rows, columns, bytes(i % 256 for i in range(rows * columns)), 0.0, 1.0, "plan")
        await pilot.pause()
        assert all(len(line) <= size[0] for line in screen_text(pilot.app).splitlines())


async def test_a_chart_on_a_log_axis() -> None:
    chart = Chart("violation", "iteration", log=True, waiting="no solve yet")
    async with One(chart).run_test(size=(50, 12)) as pilot:
        assert "no solve yet" in screen_text(pilot.app)
        chart.show([Series("", tuple((float(i), 10.0**-i) for i in range(7)))])
        await pilot.pause()
        lines = screen_text(pilot.app).splitlines()
        assert "1.0e+00" in lines[1] and "1.0e-06" in lines[10]
        chart.show([Series("", ((0.0, 0.0), (1.0, None)))])  # nothing that has a logarithm
        await pilot.pause()
        assert "no solve yet" in screen_text(pilot.app)


async def test_lines_of_a_chart_differ_without_colour() -> None:
    chart = Chart("difference", "alpha")
    async with One(chart).run_test(size=(50, 12)) as pilot:
        points = ((0.1, 1.0), (0.2, 3.0))
        lower = ((0.1, -1.0), (0.2, -2.0))
        chart.show([Series("fused", points, "$primary", "●"), Series("shrunk", lower, "$accent", "▲")], level=0.0)
        await pilot.pause()
        text = screen_text(pilot.app)
        assert text.count("●") == 3 and text.count("▲") == 3 and "─" in text


async def test_places_are_evenly_spaced_and_no_point_hides_another() -> None:
    """Differences over alpha as a report has them: small alphas are as far apart as large ones."""
    rows = [
        {"model": model, "alpha": alpha, "difference": -0.001 * alpha}
        for alpha in (0.02, 0.05, 0.3)
        for model in ("fused", "shrink", "permuted")
    ]
    series, places = scores.curves(rows)
    assert places == ["0.02", "0.05", "0.3"] and [s.name for s in series] == ["permuted", "shrunk", "fused"]
    chart = Chart("difference", "alpha")
    async with One(chart).run_test(size=(69, 12)) as pilot:
        chart.show(series, level=0.0, places=places)
        await pilot.pause()
        *_, axis, legend = screen_text(pilot.app).splitlines()
        middles = [axis.index(name) + len(name) / 2 for name in places]
        assert middles[1] - middles[0] == pytest.approx(20, abs=4) and middles[2] - middles[1] == pytest.approx(
            20, abs=2
        )
        assert "● fused" in legend
        drawn = screen_text(pilot.app).removesuffix(legend)
        assert [drawn.count(mark) for mark in "●▲■"] == [3, 3, 3], drawn


@pytest.mark.parametrize("width", [16, 24, 80])
def test_choices_that_wrap_begin_alike_on_every_line(width: int) -> None:
    """Each line holds what fits, all of it, and no option is broken."""
    options = ["dravidian", "malay", "Hub data set", "finance", "code"]
    lines = OneOf(options, "malay")._lines(width)
    assert [place for line in lines for place in line] == list(range(len(options)))
    for line in lines:
        wide = sum(len(options[place]) + 3 for place in line) - 1
        assert wide <= width or len(line) == 1
