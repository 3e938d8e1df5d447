"""Figures parse as XML, carry their data, and draw nothing where there is none. PNG cells are decoded by hand."""

from __future__ import annotations

import base64
import struct
import xml.etree.ElementTree as ET
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.report.sample_results import HOSTILE, make_measured, make_results, make_tile, score
from tmerge_tui.engine.report import figures, svg
from tmerge_tui.engine.report.render import drawn, view


def every_figure():
    return drawn(view(make_results() | make_measured()))


def image_cells(element: ET.Element) -> tuple[int, int, bytes]:
    data = base64.b64decode(element.attrib["href"].split(",", 1)[1])
    width, height = struct.unpack(">II", data[16:24])
    length = struct.unpack(">I", data[33:37])[0]
    return width, height, zlib.decompress(data[41 : 41 + length])


@pytest.mark.parametrize("figure", every_figure(), ids=lambda f: f.name)
def test_every_figure_is_xml_with_a_title(figure):
    for text in (figure.inline(), figure.standalone()):
        root = ET.fromstring(text)
        assert root.tag.endswith("svg") and root.attrib["role"] == "img"
        assert root[0].text == figure.title
    assert "http" not in figure.inline()


def test_no_two_figures_share_a_file():
    names = [f.name for f in every_figure()]
    assert len(names) == len(set(names)) == 1 + 1 + 4 + 6 + 1 + 4 + 1 + 3 + 1


def test_empty_rows_draw_nothing():
    assert figures.alpha_curve([]) is None
    assert figures.alpha_curve([score("target", None, 0.0), score("fused", 0.1, None)]) is None
    assert figures.transported([]) is None
    assert (
        figures.transported([{"layer": 0, "kind": "q", "ratio": None}, {"layer": 1, "kind": "q", "ratio": 0.0}]) is None
    )
    assert figures.mass_share([]) is None
    assert figures.layer_cost("q.out", []) is None
    assert figures.layer_plan("q", []) is None
    assert figures.feature_plan({**make_tile("q.out", 0, 0), "data": ""}) is None


def test_alpha_curve_puts_lower_scores_lower():
    figure = figures.alpha_curve([score("fused", 0.1, -0.002), score("fused", 0.2, 0.003), score("fused", 0.4, 0.001)])
    circles = [c for c in ET.fromstring(figure.inline()).iter("circle") if len(c)]  # those with a hover title
    height = {c[0].text.split("alpha ")[1].split(":")[0]: float(c.attrib["cy"]) for c in circles}
    assert height["0.1"] > height["0.4"] > height["0.2"]  # y grows downwards
    (zero,) = [e for e in ET.fromstring(figure.inline()).iter("line") if e.attrib["class"] == "zero"]
    assert height["0.1"] > float(zero.attrib["y1"]) > height["0.4"]


def test_alpha_curve_survives_identical_scores_and_no_intervals():
    rows = [{**score("fused", 0.0, 0.0), "low": None, "high": None}]
    assert ET.fromstring(figures.alpha_curve(rows).inline()) is not None


def test_layer_plan_shows_percent_of_rows():
    figure = figures.layer_plan("q", [[0.1, 0.3, 0.0], [0.0, 0.0, 0.0], [0.05, 0.05, float("nan")]])
    labels = [t.text for t in ET.fromstring(figure.inline()).iter("text") if t.get("class") in ("dark", "light")]
    assert labels == ["25", "75", "0", "50", "50", "0"]  # a row without mass stays empty
    width, height, cells = image_cells(next(ET.fromstring(figure.inline()).iter("image")))
    assert (width, height) == (3, 3)
    assert cells[13:26] == bytes(13)  # the empty row: filter byte, three transparent pixels


def test_heat_map_cells_are_the_ramp():
    figure = figures.heat_map("x", "x", [[0.0, 1.0, None]], rows="r", columns="c", low=0, high=1)
    _, _, cells = image_cells(next(ET.fromstring(figure.inline()).iter("image")))
    assert cells == bytes([0, 0x44, 0x01, 0x54, 255, 0xFD, 0xE7, 0x25, 255, 0, 0, 0, 0])


def test_deep_models_thin_their_ticks():
    figure = figures.layer_cost("q.out", [[0.5 + 0.001 * (i + j) for j in range(80)] for i in range(64)])
    words = [t.text for t in ET.fromstring(figure.inline()).iter("text")]
    assert len(words) < 40 and "72" in words


def test_a_plan_of_the_wrong_size_is_an_error():
    with pytest.raises(ValueError, match="768 cells, expected 3 x 32"):
        figures.feature_plan({**make_tile("q.out", 0, 0), "rows": 3})


def test_names_cannot_leave_the_folder_and_titles_are_escaped():
    figure = figures.layer_cost(f"../../etc {HOSTILE}", [[0.1, 0.2]])
    assert "/" not in figure.name and not figure.name.startswith(".")
    assert "<script" not in figure.standalone() and ET.fromstring(figure.standalone()) is not None


@given(st.floats(-100, 100), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(start, span):
    low, high = start * span, start * span + span
    marks = svg.ticks(low, high)
    assert 2 <= len(marks) <= 7 and all(low - span * 1e-5 <= t <= high + span * 1e-5 for t in marks)


def test_ticks_of_no_range():
    with pytest.raises(ValueError, match="no range"):
        svg.ticks(1.0, 1.0)


@given(st.floats(-1, 2))
def test_ramp_gets_lighter(share):
    def light(s):
        red, green, blue = svg.colour(s)
        return 0.3 * red + 0.59 * green + 0.11 * blue

    assert light(0) <= light(share) + 1 and light(share) <= light(1) + 1
