"""The three faces of a report: the same numbers, nothing fetched, nothing unescaped, whole when a part is empty."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.engine.report.sample_results import HOSTILE, make_measured, make_results
from tmerge_tui.engine.report.render import _badges, write_report
from tmerge_tui.engine.report.verdict import judge
from tmerge_tui.errors import StorageError
from tmerge_tui.run_folder import RunDir

SNAPSHOT = Path(__file__).with_name("report_snapshot.md")
VOID = {"meta", "br", "img", "hr", "link", "input"}
PARTS = [
    "contrasts", "projections", "layer_plans", "layer_costs", "pairs", "mass", "heatmaps", "samples", "timings",
    "memory", "warnings", "skipped", "output", "files", "tensors", "versions", "models", "scores", "recipe",
    "adaptation", "benchmarks", "strength", "next", "general", "attribution",
]  # fmt: skip


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [(tag, k, v) for k, v in attrs if k in ("href", "src", "xlink:href", "action", "srcset")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.said.append(data)


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run")


def written(results, run) -> tuple[str, str]:
    write_report(results, run)
    return (run.path / "report.html").read_text("utf-8"), (run.path / "report.md").read_text("utf-8")


def test_the_page_nests_and_fetches_nothing(run):
    html, _ = written(make_results(), run)
    page = Page(html)
    outside = [(tag, value) for tag, _, value in page.links if not value.startswith(("#", "data:image/png;base64,"))]
    assert outside == [("a", "https://arxiv.org/abs/2602.05495")]
    assert html.count("https:") == 1 and "http:" not in html and "url(" not in html and "@import" not in html
    assert "script" not in page.tags and "link" not in page.tags
    assert {v[1:] for tag, _, v in page.links if tag == "a" and v.startswith("#")} <= set(page.ids)


def test_every_figure_is_in_the_page_and_in_its_file(run):
    html, markdown = written(make_results(), run)
    inside = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    files = sorted(run.figures.glob("*.svg"))
    assert len(inside) == len(files) == 17
    for text in inside + [f.read_text("utf-8") for f in files]:
        ET.fromstring(text)
    assert set(re.findall(r"\(figures/(.+?)\)", markdown)) == {f.name for f in files}


def test_the_verdict_comes_first(run):
    results = make_results()
    html, markdown = written(results, run)
    assert markdown.splitlines()[0] == f"# {results['verdict']['headline']}"
    words = " ".join(Page(html[html.index("<main>") : html.index("</main>") + 7]).said).split()
    assert " ".join(words).startswith(results["verdict"]["headline"])


def test_the_first_screen_and_the_tab_of_a_browser_name_the_models(run):
    html, markdown = written(make_results(), run)
    assert "<title>org/big-llama into small-qwen2: better than the target</title>" in html
    assert '<p class="eyebrow">org/big-llama into small-qwen2</p>' in html
    assert markdown.splitlines()[2] == "org/big-llama into small-qwen2"
    results = make_results() | {"models": {"source": {"name": r"C:\models\a"}, "target": {"name": "~/b"}}}
    assert "<title>a into b" in written(results, run)[0]


def test_what_does_not_beat_its_placebos_is_no_success(run):
    """Reference: the intervals. Better than the target by itself is not good news."""
    html, _ = written(make_results({0.1: (-0.0030, 0.0003, 0.0010)}), run)
    assert html.count('<li class="good">') == 2 and "beats 2 of 2" in html
    html, markdown = written(make_results({0.1: (-0.0030, -0.0030, 0.0010)}), run)
    assert '<li class="good">' not in html and '<li class="open"><span aria-hidden="true">○</span> better' in html
    assert "| better | beats 1 of 2 |" in markdown
    assert all(line.endswith("|  |") for line in markdown.splitlines() if line.startswith("| placebo"))


def test_no_placebo_is_spoken_of_where_the_target_itself_was_chosen() -> None:
    verdict, contrasts = {"helped": None, "beats_placebos": None}, [{"against": "shrink"}]
    assert _badges(verdict, contrasts, {"model": "target"}) == [("open", "○", "the target itself")]
    chosen = _badges({"helped": True, "beats_placebos": None}, contrasts, {"model": "sft"})
    assert chosen[1] == ("open", "?", "no placebo measured"), "those of fusion are none of its own"
    assert _badges({"helped": True, "beats_placebos": False}, contrasts)[1][2] == "does not beat its placebos"


def test_next_steps_come_with_their_options(run):
    html, markdown = written(make_results({0.1: (0.0003, 0.0003, 0.0002)}), run)
    assert "--set &#39;adaptation.compare=[sft,distill]&#39;" in html
    assert "`--set 'adaptation.compare=[sft,distill]'`" in markdown and "`--set fusion.alpha=auto`" in markdown


def test_hostile_text_stays_text(run):
    results = make_results()
    results["samples"][0]["prompt"] = "<img src=x onerror=alert(1)>"
    results["files"][0]["path"] = "model/<script>.bin"
    results["skipped"] = ["a | b <script>"]
    html, markdown = written(results, run)
    page = Page(html)
    assert "img" not in page.tags and "script" not in page.tags
    assert HOSTILE in page.said
    outside_fences = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", markdown)
    assert "<script" not in outside_fences and "a \\| b &lt;script&gt;" in markdown
    assert f"````\n{HOSTILE}\n````" in markdown  # the fence is longer than the backticks inside


def test_json_is_what_was_measured(run):
    results = make_results()
    write_report(results, run)
    assert json.loads((run.path / "report.json").read_text("utf-8")) == json.loads(json.dumps(results))


def test_what_is_not_finite_becomes_null_and_a_dash(run):
    results = make_results()
    results["scores"][2] |= {"bits_per_byte": math.nan, "difference": math.inf, "low": -math.inf, "high": None}
    results["projections"][0]["ratio"] = math.nan
    results["pairs"][0]["violation"] = math.inf
    html, markdown = written(results, run)
    assert json.loads((run.path / "report.json").read_text("utf-8"))["scores"][2]["bits_per_byte"] is None
    assert "| **–** |" in markdown
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(Page(html).said) + markdown)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("empty", ["gone", "empty"])
def test_any_part_may_be_absent(part, empty, run):
    results = make_results() | make_measured()
    if empty == "gone":
        del results[part]
    else:
        results[part] = type(results[part])()
    html, markdown = written(results, run)
    Page(html)
    assert "None" not in markdown and "Undefined" not in html


def test_an_empty_run_says_what_is_missing(run):
    html, _ = written({"verdict": judge([], [])}, run)
    said = " ".join(Page(html).said)
    for words in ("Nothing was measured.", "No placebo was measured", "No merged model was written."):
        assert words in said
    for words in ("Training", "Benchmarks", "Strength", "Samples", "Which layers met", "Convergence"):
        assert words not in said, "a part that is absent is not drawn"
    assert not list(run.figures.glob("*.svg"))


def test_one_alpha_no_source_no_placebos(run):
    results = make_results({0.1: (0.0003, 0.0003, 0.0002)})
    results["scores"] = [s for s in results["scores"] if s["model"] in ("target", "fused")]
    results["contrasts"], results["heatmaps"] = [], []
    results["verdict"] = judge(results["scores"], [])
    html, markdown = written(results, run)
    assert "no placebo measured" in " ".join(Page(html).said)
    assert "no claim of transfer can be made" in markdown.splitlines()[0]


def test_the_markdown_is_as_recorded(run):
    """After a wanted change: delete report_snapshot.md, run once, read what was written."""
    _, markdown = written(make_results(), run)
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(markdown, "utf-8")
        pytest.fail("recorded a new snapshot: read it, then run again")
    assert markdown == SNAPSHOT.read_text("utf-8")


def test_markdown_tables_are_whole(run):
    _, markdown = written(make_results(), run)
    plain = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", markdown)
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", plain)
    assert len(blocks) == 9
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1, block


def test_writing_twice_changes_nothing(run):
    first = written(make_results(), run)
    assert written(make_results(), run) == first
    assert not list(run.path.rglob("*.part"))


def test_a_folder_that_cannot_be_written(run):
    run.figures.rmdir()
    run.figures.write_text("a file in the way")
    with pytest.raises(StorageError, match="figures"):
        write_report(make_results(), run)
