"""Several methods on one pair: one page, one reading, resumed where it was cut, and a reason where one cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.methods.test_contract import OPTIONS
from tests.engine.pair import make_pair, recipe_of
from tests.engine.report.sample_results import contrast, score
from tmerge_tui.engine import comparison
from tmerge_tui.engine.methods.registry import METHODS
from tmerge_tui.engine.preflight.check import compared, examine, prepare, with_time
from tmerge_tui.engine.preflight.estimate import together
from tmerge_tui.engine.report.comparison import NOTHING, headline
from tmerge_tui.errors import CheckError, NumericsError, RecipeError
from tmerge_tui.events import Event, RunFinished, RunStarted, StageFinished, StageStarted
from tmerge_tui.recipe import Recipe, load_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import main as worker

ALL = ["transport_merge", "ot_fusion", "ls_merge"]


@pytest.fixture(scope="module")
def mapping(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**make_pair(tmp_path_factory.mktemp("pair")), "ls_merge": OPTIONS["ls_merge"]}


def asked(mapping: dict[str, Any], output: Path, methods: list[str] = ALL, **changes: Any) -> Recipe:
    changes = {"fusion": {"alpha": [0.1, 0.3]}, "transport": {"projections": ["q", "k"]}, **changes}
    return recipe_of(mapping, output=str(output), compare_methods=methods, **changes)


def ran(recipe: Recipe) -> tuple[RunDir, list[Event]]:
    run, seen = RunDir.create(recipe.output), []
    comparison.run(recipe, run, seen.append)
    return run, seen


def page(run: RunDir) -> dict[str, Any]:
    return json.loads((run.path / "compare.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def finished(mapping: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, list[Event]]:
    return ran(asked(mapping, tmp_path_factory.mktemp("runs") / "run"))


def test_every_method_is_a_row_beside_its_own_placebos(finished: tuple[RunDir, list[Event]]) -> None:
    run, seen = finished
    found = page(run)
    assert [row["method"] for row in found["methods"]] == ALL
    for row in found["methods"]:
        measured = {score["model"] for score in row["scores"]}
        placebos = set(METHODS[row["method"]].placebos(load_recipe(run.recipe)))
        assert measured == {"target", "source", "fused"} | placebos
        assert {one["against"] for one in row["contrasts"]} == placebos
        told = {one["alpha"]: one["bits_per_byte"] for one in row["strength"]["trials"]}
        assert set(told) == {0.1, 0.3} and told[row["alpha"]] == min(told.values()) == row["validation"]
        assert row["seconds"] > 0 and row["rss"] > 1 << 20
    one, *others = ([s for s in row["scores"] if s["model"] in ("target", "source")] for row in found["methods"])
    assert all(other == one for other in others), "measured once, on the same texts"
    best = min(found["methods"], key=lambda row: row["validation"])
    assert found["best"] == best["method"]
    last = seen[-1]
    assert isinstance(last, RunFinished) and last.verdict == found["headline"]
    assert last.report == str(run.path / "compare.html") and Path(last.output).is_dir()
    report = json.loads((run.path / "report.json").read_text())
    assert report["method"]["name"] == best["method"], "model/ and report.html are the best one's"


def test_the_page_begins_with_what_decides(finished: tuple[RunDir, list[Event]]) -> None:
    run, _ = finished
    lines = (run.path / "compare.md").read_text("utf-8").splitlines()
    assert lines[0] == f"# {page(run)['headline']}"
    html = (run.path / "compare.html").read_text("utf-8")
    assert f"<h1>{page(run)['headline']}</h1>" in html and "http" not in html.replace("https://arxiv", "").replace(
        "https://openreview", ""
    ), "nothing is fetched"
    for name in ALL:
        assert sum(line.startswith(f"| {name.replace('_', chr(92) + '_')} |") for line in lines) >= 2


def test_what_was_announced_comes_once_and_models_are_read_once(
    mapping: dict[str, Any], finished: tuple[RunDir, list[Event]], tmp_path: Path
) -> None:
    run, seen = finished
    announced = [stage["name"] for stage in next(e for e in seen if isinstance(e, RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, StageFinished)] == announced
    outcomes = {e.stage: e.outcome for e in seen if isinstance(e, StageFinished)}
    assert outcomes["transport_merge.extract_source"] == "done"
    assert outcomes["ot_fusion.extract_source"] == outcomes["ot_fusion.extract_target"] == "cached"
    read = sum(e.seconds for e in seen if isinstance(e, StageFinished) and ".extract_" in e.stage)
    (other,) = [row for row in page(run)["methods"] if row["method"] == "ot_fusion"]
    assert other["seconds"] > read, "what it needs counts for it too"


def test_running_again_computes_nothing_and_says_the_same(
    mapping: dict[str, Any], finished: tuple[RunDir, list[Event]]
) -> None:
    run, _ = finished
    before = page(run)
    _, seen = ran(asked(mapping, run.path))
    done = {e.stage for e in seen if isinstance(e, StageFinished) and e.outcome == "done"}
    assert {stage.partition(".")[2] for stage in done} <= {"", "check"}, done
    again = page(run)
    for old, new in zip(before["methods"], again["methods"], strict=True):
        assert new["scores"] == old["scores"] and new["contrasts"] == old["contrasts"]
        check = 2.0  # the one stage that is always done anew
        assert new["seconds"] == pytest.approx(old["seconds"], abs=check), "times are those of who computed"


def test_a_comparison_that_is_cut_goes_on_from_its_recipe_to_the_same(
    mapping: dict[str, Any], finished: tuple[RunDir, list[Event]], tmp_path: Path
) -> None:
    straight, _ = finished
    recipe = asked(mapping, tmp_path / "run")
    run = RunDir.create(recipe.output)
    for stage in ("transport_merge.evaluate", "ot_fusion.carry", "ls_merge.encode", "result"):

        def cut(event: Event, stage: str = stage) -> None:
            if isinstance(event, StageStarted) and event.stage == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            comparison.run(recipe, run, cut)
    resumed = load_recipe(run.recipe)
    assert list(resumed.compare_methods) == ALL, "a resumed run is the same comparison"
    _, seen = ran(resumed)
    outcomes = {e.stage: e.outcome for e in seen if isinstance(e, StageFinished)}
    assert outcomes["ls_merge.autoencoder"] == "cached"
    for ours, theirs in zip(page(run)["methods"], page(straight)["methods"], strict=True):
        assert ours["scores"] == theirs["scores"] and ours["alpha"] == theirs["alpha"]


def test_one_that_refuses_and_one_that_breaks_are_rows_with_their_reasons(
    mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*given: Any) -> Any:
        raise NumericsError("NaN in layer 1", "finite numbers", "try float32")

    monkeypatch.setattr(METHODS["ls_merge"], "merge", breaks, raising=False)
    run, seen = ran(asked(mapping, tmp_path / "run", fusion={"alpha": 0.1, "norm": "keep"}))
    rows = {row["method"]: row for row in page(run)["methods"]}
    assert rows["transport_merge"]["reason"] is None
    assert rows["ot_fusion"]["reason"].startswith("fusion.norm: keep: found with method: ot_fusion")
    assert page(run)["best"] == "transport_merge"
    assert "fusion.norm: keep" in (run.path / "compare.md").read_text("utf-8")
    announced = [stage["name"] for stage in next(e for e in seen if isinstance(e, RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, StageFinished)] == announced
    skipped = [e.stage for e in seen if isinstance(e, StageFinished) and e.outcome == "skipped"]
    assert "ot_fusion.carry" in skipped

    other, _ = ran(asked(mapping, tmp_path / "other", ["transport_merge", "ls_merge"]))
    (broken,) = [row for row in page(other)["methods"] if row["method"] == "ls_merge"]
    assert broken["reason"] == "NaN in layer 1 expected: finite numbers next: try float32"


def test_where_none_can_run_all_say_why(mapping: dict[str, Any], tmp_path: Path) -> None:
    recipe = asked(mapping, tmp_path / "run", ["ot_fusion", "ls_merge"], fusion={"norm": "keep"})
    with pytest.raises(CheckError, match=r"ot_fusion: fusion\.norm(.|\n)*ls_merge: fusion\.norm"):
        ran(recipe)
    assert not (tmp_path / "run" / "compare.json").exists()
    problems, warnings = examine(recipe)
    assert len(problems) == 2 and warnings == []
    problems, warnings = examine(asked(mapping, tmp_path / "run", fusion={"norm": "keep"}))
    assert problems == [] and sum("is left out: fusion.norm" in warning for warning in warnings) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compare_methods": ["ot_fusion"]}, "expected two or more"),
        ({"compare_methods": ["ot_fusion", "ot_fusion"]}, "each once"),
        ({"compare_methods": ["ot_fusion", "fuse_all"]}, "compare_methods"),
        ({"method": "ls_merge", "compare_methods": ALL[:2]}, "expected one of them"),
        ({"compare_methods": ALL, "adaptation": {}}, "compare first"),
    ],
)
def test_a_recipe_that_cannot_compare(mapping: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe_of(mapping, **changes)


def test_the_first_method_named_is_the_recipes_own_and_the_worker_compares(mapping: dict[str, Any]) -> None:
    recipe = recipe_of(mapping, compare_methods=["ot_fusion", "ls_merge"])
    assert recipe.method == "ot_fusion" and [one.method for one in compared(recipe)] == ["ot_fusion", "ls_merge"]
    assert worker._pipeline(recipe) is comparison.run
    assert worker._pipeline(recipe_of(mapping)) is not comparison.run


def test_the_estimate_is_of_all_of_them(mapping: dict[str, Any], tmp_path: Path) -> None:
    recipe = asked(mapping, tmp_path / "run")
    each = [prepare(one).estimate for one in compared(recipe)]
    whole = together(each)
    assert whole.work["transport"] == each[0].work["transport"] + each[1].work["transport"]
    assert whole.work["autoencoder"] == each[2].work["autoencoder"] > 0
    assert whole.work["reading"] == max(one.work["reading"] for one in each)
    assert whole.disk_bytes == sum(one.disk_bytes for one in each)
    assert with_time(prepare(recipe)).work == whole.work


def row(method: str, fused: float, placebo: float, validation: float) -> dict[str, Any]:
    verdict = {"helped": fused < 0, "beats_placebos": fused < placebo, "headline": ""}
    return {
        "method": method, "reason": None, "validation": validation, "verdict": verdict, "alpha": 0.1,
        "scores": [score("target", None, 0.0), score("fused", 0.1, fused)],
        "contrasts": [contrast(0.1, "shrink", fused - placebo)],
    }  # fmt: skip


def test_the_first_line_says_who_beats_its_placebos_or_that_nobody_does() -> None:
    shared, worse = row("a", -0.01, -0.02, 2.0), row("b", 0.02, 0.01, 2.2)
    failed = {"method": "c", "reason": "too slow"}
    assert headline([shared, worse, failed]) == NOTHING
    alone = row("f", 0.01, 0.03, 2.3)
    assert headline([shared, alone]) == "Nothing beats both the target and its placebos: f beats its placebos alone."
    good, better = row("d", -0.03, 0.0, 2.1), row("e", -0.02, 0.0, 2.05)
    assert headline([shared, good]).startswith("d beats its placebos: 2.1406 bits per byte against the target's 2.1706")
    said = headline([good, better])
    assert said.startswith("e beats") and said.endswith("; so does d."), "by validation text and not by the hold-out"
