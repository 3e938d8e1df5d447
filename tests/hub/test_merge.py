"""A merge by hub id, as real processes: online, then again offline from the cache; and its preflight.

Reference: the same recipe with the same models as folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from tests.engine.pair import make_pair, recipe_of
from tests.hub.conftest import environment
from tests.hub.server import TOKEN, Hub
from tests.tiny import edit_config, make_model
from tmerge_tui import events, shipped
from tmerge_tui.commands.batch import Options
from tmerge_tui.commands.inspect import plan
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.engine.preflight.scout import scout
from tmerge_tui.errors import CheckError
from tmerge_tui.quantities import size
from tmerge_tui.recipe import Recipe
from tmerge_tui.run_folder import RunDir

FIRST = 4096  # bytes of header asked for at first: the models here are small


@pytest.fixture(autouse=True)
def small_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmerge_tui.hub.headers.FIRST", FIRST)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = make_pair(tmp_path_factory.mktemp("pair"))
    return {**made, "transport": {"projections": ["q", "o"]}, "evaluation": {"source": False, "controls": []}}


def serve(hub: Hub, pair: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """The pair on the Hub, and the recipe that names it there."""
    for role in ("source", "target"):
        hub.add(f"org/{role}", Path(pair[role]), **facts)
    return {**pair, "source": "org/source", "target": {"model": "org/target", "revision": "main"}}


def headers_only(hub: Hub) -> bool:
    """Whether nothing but beginnings of weight files was asked for."""
    return all(r.headers.get("range") == f"bytes=0-{FIRST - 1}" for r in hub.asked("/model/*/*.safetensors"))


def run(recipe: Recipe) -> list[dict[str, Any]]:
    """Runs a recipe here; the stages it announced."""
    seen: list[events.Event] = []
    pipeline.run(recipe, RunDir.create(recipe.output), seen.append)
    return next(event.stages for event in seen if isinstance(event, events.RunStarted))


def tmerge(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tmerge_tui", *arguments], capture_output=True, text=True, env=env)


def test_merge_by_hub_id_online_then_offline(hub: Hub, pair: dict[str, Any], tmp_path: Path) -> None:
    mapping = serve(hub, pair, gated=True)
    hub.allowed |= {"org/source", "org/target"}
    env = environment(hub, tmp_path / "home", HF_TOKEN=TOKEN)
    recipe = tmp_path / "recipe.yaml"
    models, said = [], ""
    for name, extra in (("online", []), ("offline", ["--offline"])):
        recipe.write_text(yaml.safe_dump({**mapping, "output": str(tmp_path / name)}))
        asked = len(hub.requests)
        done = tmerge(["--batch", str(recipe), "--json", *extra], env)
        assert done.returncode == 0, done.stderr
        assert (len(hub.requests) == asked) == (name == "offline")
        models.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
        said += done.stdout + done.stderr
    reference = recipe_of(pair, output=str(tmp_path / "folders"))
    announced = [stage["name"] for stage in run(reference)]
    assert models == [(tmp_path / "folders" / "model" / "model.safetensors").read_bytes()] * 2
    lines = [json.loads(line) for line in (tmp_path / "online" / "events.jsonl").read_text().splitlines()]
    progress = [line for line in lines if line["type"] == "StageProgressed" and line["stage"] == "download"]
    sizes = [(Path(pair[role]) / "model.safetensors").stat().st_size for role in ("source", "target")]
    assert progress[-1]["done"] == progress[-1]["total"] == sum(sizes) and progress[-1]["unit"] == "bytes"
    assert progress[-1]["note"] == "2 of 2 files"
    stages = next(line for line in lines if line["type"] == "RunStarted")["stages"]
    assert [stage["name"] for stage in stages] == [announced[0], "download", *announced[1:]]
    assert sum(stage["weight"] for stage in stages) == pytest.approx(1)
    assert [line["stage"] for line in lines if line["type"] == "StageFinished"] == [s["name"] for s in stages]
    resolved = yaml.safe_load((tmp_path / "online" / "recipe.yaml").read_text())["resolved"]
    assert resolved["source"]["model"] == "org/source"
    assert resolved["source"]["commit"] == hub.repos["model", "org/source"].commit
    warnings = [line["message"] for line in lines if line["type"] == "Warned"]
    assert not [text for text in warnings if "cached copy" in text]
    offline = (tmp_path / "offline" / "events.jsonl").read_text()
    assert "cached copy used (offline mode)" in offline
    written = [p for run in ("online", "offline") for p in (tmp_path / run).rglob("*") if p.suffix != ".safetensors"]
    for path in written:
        assert not path.is_file() or TOKEN not in path.read_text(errors="replace"), path
    assert TOKEN not in said


def test_the_check_downloads_no_weights_and_knows_what_folders_know(hub: Hub, pair: dict[str, Any]) -> None:
    near = prepare(recipe_of(pair))
    far = prepare(recipe_of(serve(hub, pair)))
    assert headers_only(hub)
    assert far.source.located.pending and far.target.located.pending
    assert far.matching == near.matching and far.estimate == near.estimate
    changing = {"name", "folder", "fingerprint"}
    for role in ("source", "target"):
        facts = [vars(getattr(prepared, role).facts) for prepared in (near, far)]
        known = [{k: v for k, v in one.items() if k not in changing} for one in facts]
        assert known[0] == known[1]


def test_the_plan_says_what_will_be_downloaded(
    hub: Hub, pair: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**serve(hub, pair), "source": pair["source"]}))
    assert plan(str(path), Options()) == 0 and headers_only(hub)
    weights = (Path(pair["target"]) / "model.safetensors").stat().st_size
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# download")]
    assert lines == [f"# {'download':<12} org/target@main: {size(weights)} in 1 files"]


def test_scout_fetches_weights_only_when_it_is_told_to(
    hub: Hub, pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMERGE_CACHE", str(tmp_path / "cache"))
    recipe, seen = recipe_of({**serve(hub, pair), "source": pair["source"]}), list[events.Event]()
    weights = (Path(pair["target"]) / "model.safetensors").stat().st_size
    found = scout(recipe, seen.append)
    assert headers_only(hub) and not (tmp_path / "cache").exists()
    assert (found["outcome"], found["models"], found["arms"]) == ("unknown", None, [])
    assert found["pending"] == [{"name": "org/target@main", "bytes": weights}]
    assert found["tokenizers"]["shared_vocabulary"] == 1.0, "tokenizers are among the small files"
    assert [event for event in seen if isinstance(event, events.Warned) and size(weights) in event.message]
    whole = scout(recipe, seen.append, download=True)
    assert whole["models"] is not None and whole["pending"] == []


def test_the_check_of_pytorch_weights_trusts_the_configuration(hub: Hub, pair: dict[str, Any]) -> None:
    mapping = serve(hub, pair)
    files = {path.name: path.read_bytes() for path in Path(pair["source"]).iterdir()}
    hub.add("org/source", {**files, "pytorch_model.bin": files.pop("model.safetensors")} | {"model.safetensors": b""})
    hub.repos["model", "org/source"].files.pop("model.safetensors")
    near, far = prepare(recipe_of(pair)), prepare(recipe_of(mapping))
    assert not hub.asked("/model/org/source/*.bin") and far.source.located.pending
    assert far.matching == near.matching
    assert far.source.facts.layout.projections == near.source.facts.layout.projections


def test_all_problems_of_both_models_and_the_text_at_once(hub: Hub, pair: dict[str, Any], tmp_path: Path) -> None:
    mapping = serve(hub, pair)
    hub.repos["model", "org/source"].gated = True
    hub.repos["model", "org/target"].files["config.json"] = b'{"model_type": "unheard_of"}'
    recipe = recipe_of({**mapping, "calibration": {"path": str(tmp_path / "none.txt")}})
    problems = check(recipe)
    assert len(problems) == 3 and headers_only(hub)
    text = "\n".join(problems)
    assert "source: org/source is gated" in text and "target: org/target@main: transformers does not" in text
    assert "none.txt" in text


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"quantization_config": {"quant_method": "hqq"}}, r"is quantised \(hqq\)"),
        ("llama", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "which writes no text"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "which writes no text"),
    ],
)
def test_families_are_refused_before_weights_are_downloaded(
    hub: Hub, pair: dict[str, Any], tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    mapping = serve(hub, pair)
    odd = make_model(tmp_path / "odd", family)
    edit_config(odd, **changes)
    hub.add("org/source", odd)
    with pytest.raises(CheckError, match=message):
        prepare(recipe_of(mapping))
    assert headers_only(hub)


def test_a_cache_without_room_is_a_problem_of_the_check(
    hub: Hub, pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmerge_tui.hub.download.shutil.disk_usage", lambda path: type("Usage", (), {"free": 20_000})())
    with pytest.raises(CheckError, match=r"cache: 20 kB free at .* have to be downloaded"):
        prepare(recipe_of(serve(hub, pair)))


def test_a_resolved_recipe_repeats_its_commits(hub: Hub, pair: dict[str, Any]) -> None:
    """A recipe that a run wrote names commits: newer ones of the same repositories are not taken."""
    mapping = serve(hub, pair)
    before = hub.repos["model", "org/source"].commit
    written = {**mapping, "resolved": {"source": {"model": "org/source", "commit": before}}}
    hub.repos["model", "org/source"].change(README__md=b"changed")
    assert hub.repos["model", "org/source"].commit != before
    assert prepare(recipe_of(mapping)).source.located.commit != before
    assert prepare(recipe_of(written)).source.located.commit == before
    moved = {**written, "source": "org/target"}  # another model: what was resolved is not about it
    assert prepare(recipe_of(moved)).source.located.commit == hub.repos["model", "org/target"].commit


def test_the_demo_models_by_hub_id(hub: Hub, tmp_path: Path) -> None:
    """The bundled pair on a little of its text, served by the Hub; online, then again without it."""
    demo = shipped.folder() / "demo"
    mapping = yaml.safe_load((demo / "recipe.yaml").read_text())
    for role in ("source", "target"):
        hub.add(f"demo/{role}", demo / mapping[role])
        mapping[role] = f"demo/{role}"
    mapping["calibration"] = {"path": str(demo / "calibration.txt"), "samples": 60, "holdout": 20, "max_length": 64}
    mapping["transport"] = {"projections": ["q", "down"]}
    mapping["evaluation"] = {"source": False, "controls": [], "resamples": 100}
    mapping["fusion"]["alpha"] = 0.1
    models = []
    for name in ("online", "offline"):
        constants.HF_HUB_OFFLINE = name == "offline"  # put back by the fixture
        asked = len(hub.requests)
        run(recipe_of(mapping, output=str(tmp_path / name)))
        assert (len(hub.requests) == asked) == (name == "offline")
        models.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    assert models[0] != hub.repos["model", "demo/target"].files["model.safetensors"]
