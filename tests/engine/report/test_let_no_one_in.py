"""What comes from elsewhere is data in the report and the card: tried in a real browser where there is one.

Reference: the page's title, which every payload would change.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.engine.report.sample_results import make_measured, make_results
from tmerge_tui.engine.report.model_card import write_card
from tmerge_tui.engine.report.render import write_report
from tmerge_tui.run_folder import RunDir

RUN = "document.title='entered'"
PAYLOADS = (
    f"<script>{RUN}</script>", f"\"><img src=x onerror={RUN}>", f"</style><script>{RUN}</script>",
    f"</title><svg onload={RUN}>", f"</text></svg><script>{RUN}</script>", f"' onmouseover={RUN} x='",
    "{{ 7 * 7 }}{% raw %}", "]]><script>", "<base href=https://evil.example/>", "<meta http-equiv=refresh content=0>",
)  # fmt: skip
KEPT = {  # words that the report knows and looks up
    "model", "against", "kind", "axis", "stage", "side", "alpha", "outcome", "result", "helped", "dtype", "data",
    "metric", "method", "coupling", "norm", "solver", "folder", "created", "name", "candidate",
}  # fmt: skip
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome", "chromium-browser")


def poisoned(value: Any, key: str = "") -> Any:
    """The same report with every free text followed by every payload."""
    if isinstance(value, dict):
        return {name: poisoned(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, key) for inner in value]
    return value + "".join(PAYLOADS) if isinstance(value, str) and key not in KEPT else value


def page_of(folder: Path) -> Path:
    results = poisoned(make_results() | make_measured())
    for role in ("source", "target"):
        results["models"][role]["name"] += "".join(PAYLOADS)
    run = RunDir.create(folder)
    write_report(results, run)
    return run.path / "report.html"


def titles(page: Path) -> str:
    """The page's title after a browser has run what it would run."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: one of {', '.join(BROWSERS)}")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom",
         f"--user-data-dir={page.parent / 'profile'}", page.as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert found is not None, done.stdout[:500]
    return found[1]


def test_nothing_of_a_report_runs_in_a_browser(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run")
    assert titles(page) != "entered" and "into" in titles(page)


def test_the_policy_holds_where_escaping_would_not(tmp_path: Path) -> None:
    """A script put into the page by hand does not run; without the policy it would."""
    page = page_of(tmp_path / "run")
    html = page.read_text("utf-8").replace("</main>", f"<script>{RUN}</script></main>")
    page.write_text(html, "utf-8")
    assert titles(page) != "entered"
    page.write_text(re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", html), "utf-8")
    assert titles(page) == "entered"


def test_the_pages_policy_lets_in_nothing_but_its_own_style(tmp_path: Path) -> None:
    html = page_of(tmp_path / "run").read_text("utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    assert "default-src 'none'" in policy and "script-src" not in policy and "base-uri 'none'" in policy
    assert html.index("Content-Security-Policy") < html.index("<title>")
    assert "49" not in re.findall(r"<title>(.*?)</title>", html)[0] and "{{ 7 * 7 }}" in html


def test_every_figure_is_one_drawing_without_scripts(tmp_path: Path) -> None:
    import xml.etree.ElementTree as ET

    page = page_of(tmp_path / "run")
    figures = list((page.parent / "figures").iterdir())
    assert figures and all(path.parent == page.parent / "figures" for path in page.parent.rglob("*.svg"))
    for file in figures:
        tags = {element.tag.rpartition("}")[2] for element in ET.parse(file).iter()}
        assert tags <= {"svg", "title", "style", "rect", "g", "text", "line", "polyline", "circle", "image", "path"}, (
            file
        )


NAMES = (
    "a\n---\nlicense: mit\n",
    'it\'s "quoted": [x',
    "- x: !!python/object:os.system",
    "\n...\n# x",
    "k: v # c",
    "\u2028---\u2028",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_one_value_of_the_card(name: str, tmp_path: Path) -> None:
    """Reference: the card read back by the Hub's own client, and by YAML."""
    folder = tmp_path / "run" / "model-alpha-0.1"
    folder.mkdir(parents=True)
    readme = tmp_path / "target" / "README.md"
    readme.parent.mkdir()
    header = yaml.safe_dump({"license": "other", "license_name": name, "language": [name], "datasets": [name]})
    readme.write_text(f"---\n{header}---\nbody\n", "utf-8")
    results = make_results()
    results["recipe"]["output"] = f"/runs/{name}"
    results["recipe"]["calibration"] = {"repo_id": name}
    results["recipe"]["source"]["model"] = f"org/{name}"
    write_card(results, folder, readme)
    text = (folder / "README.md").read_text("utf-8")
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "other" and data["license_name"] == name and data["language"] == [name]
    assert data["model-index"][0]["name"] == Path(f"/runs/{name}").name
    assert data["base_model_relation"] == "merge" and "k" not in data
    recipe = yaml.safe_load((folder / "tmerge_recipe.yaml").read_text("utf-8"))
    assert set(recipe) == set(results["recipe"])
