"""Parts of the report: each has a view and two templates and is drawn where it is. Reference: the templates."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine.report.sample_results import make_measured, make_results
from tmerge_tui import shipped
from tmerge_tui.engine.report import names, templates, views
from tmerge_tui.engine.report.render import write_report
from tmerge_tui.run_folder import RunDir

FACES = ("html", "md")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run")


def sections(run: RunDir) -> list[str]:
    return re.findall(r'<section id="(.+?)">', (run.path / "report.html").read_text("utf-8"))


def test_every_view_has_its_templates_and_no_template_is_left_over() -> None:
    there = {path.name for path in (shipped.folder() / "templates" / "parts").iterdir()}
    assert there == {f"{key}.{face}.jinja" for key in (*views.VIEWS, "macros") for face in FACES}


@pytest.mark.parametrize("key", views.VIEWS)
def test_a_part_is_drawn_where_it_is_and_only_there(key: str, run: RunDir) -> None:
    results = make_results() | make_measured()
    write_report(results, run)
    assert key in sections(run)
    write_report({name: part for name, part in results.items() if name != key}, run)
    assert key not in sections(run)
    write_report(results | {key: type(results[key])()}, run)
    assert key not in sections(run), "an empty one is none"


def test_a_new_measurement_is_a_view_and_two_templates(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shipped.folder(), tmp_path / "assets", ignore=shutil.ignore_patterns("demo"))
    for face, text in (("html", '<section id="safety">{{ part.told }}</section>'), ("md", "Safety: {{ part.told }}")):
        (tmp_path / "assets" / "templates" / "parts" / f"safety.{face}.jinja").write_text(text)
    monkeypatch.setattr(shipped, "folder", lambda: tmp_path / "assets")

    def view(data: Any) -> dict[str, Any]:
        return {"told": f"{data['harmful']} < 3"}

    monkeypatch.setitem(views.VIEWS, "safety", views.View("Safety", view))
    templates.environment.cache_clear()
    write_report(make_results() | {"safety": {"harmful": 2}}, run)
    templates.environment.cache_clear()
    html, markdown = ((run.path / f"report.{face}").read_text("utf-8") for face in FACES)
    assert '<section id="safety">2 &lt; 3</section>' in html and '<a href="#safety">Safety</a>' in html
    assert "Safety: 2 < 3" in markdown


def test_a_part_without_a_view_is_kept_and_not_drawn(run: RunDir) -> None:
    write_report(make_results() | {"other": [1]}, run)
    assert '"other"' in (run.path / "report.json").read_text("utf-8") and "other" not in sections(run)


def test_the_loss_of_every_training_is_a_line(run: RunDir) -> None:
    write_report(make_results() | make_measured(), run)
    for method in ("adapted", "sft", "distilled"):
        assert (run.figures / f"training-{method}.svg").read_text("utf-8").count("<polyline") == 2, "two seeds"


def test_who_has_no_name_keeps_its_own_and_comes_last() -> None:
    assert names.title("shrink") == "placebo: rows shrunk" and names.short("shrink") == "placebo: shrunk"
    assert names.beside_trained("fused") == "fused, not trained" and names.beside_trained("sft") == names.title("sft")
    assert names.title("new") == names.short("new") == names.beside_trained("new") == "new"
    assert sorted(["new", "permuted", "target", "fused"], key=names.rank) == ["target", "fused", "permuted", "new"]
