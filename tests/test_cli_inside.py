"""Commands in this process, which has torch already: looking at models and recipes, the demo, a bug."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import inside
from tmerge_tui import shipped
from tmerge_tui.errors import ModelError
from tmerge_tui.recipe import load_recipe, parse_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import make_model, make_text

    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "source", "llama", hidden=48, intermediate=64)
    make_model(folder / "target", "qwen2", layers=1)
    make_text(folder / "text.txt")
    (folder / "recipe.yaml").write_text(
        "source: source\ntarget: target\ncalibration: {path: text.txt, samples: 20, holdout: 10}\n"
        "fusion: {k: 8}\noutput: run\n"
    )
    return folder


def test_plan_prints_a_recipe_with_its_needs_and_runs_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = inside(models, monkeypatch, capsys, "plan", "recipe.yaml", "--set", "transport.epsilon=2e-1")
    assert code == 0
    printed, given = parse_recipe(out), load_recipe("recipe.yaml")
    assert printed.transport.epsilon == 0.2
    assert printed.source == given.source and printed.source.model == str(models / "source")
    assert "# target       Qwen2ForCausalLM, 1 layers, hidden 32" in out and "# memory" in out and "# disk" in out
    assert not (models / "run").exists()


def test_check_lists_everything_or_shows_a_model(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = inside(models, monkeypatch, capsys, "check", "recipe.yaml")
    assert (code, out) == (0, "") and err.endswith("no problems found\n") and "note: calibration.max_length" in err
    (models / "bad.yaml").write_text(
        "source: ./nowhere\ntarget: target\ncalibration: {path: none.txt}\nfusion: {k: 8}\noutput: run\n"
    )
    code, out, err = inside(models, monkeypatch, capsys, "check", "bad.yaml")
    assert (code, out) == (2, "") and "nowhere" in err and "none.txt" in err and "Traceback" not in err
    code, out, _ = inside(models, monkeypatch, capsys, "check", "target")
    assert code == 0 and "16 x 32  model.layers.0.self_attn.k_proj.weight + model.layers.0.self_attn.k_proj.bias" in out


def test_check_shows_where_a_projection_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import make_model

    qkv = {"gpt_neox": "gpt_neox.layers.1.attention.query_key_value", "gpt2": "transformer.h.1.attn.c_attn"}
    for family, kind, shape, name, place in (
        ("gpt_neox", "v", "32 x 32", qkv["gpt_neox"], "  rows 16-23, 40-47, ... (4 runs)"),
        ("gpt2", "k", "32 x 32", qkv["gpt2"], "  columns 32-63  stored in x out"),
        ("phi3", "up", "48 x 32", "model.layers.1.mlp.gate_up_proj", "  rows 48-95"),
    ):
        bias = f" + {name}.bias" if family in qkv else ""
        make_model(tmp_path / family, family)
        code, out, _ = inside(tmp_path, monkeypatch, capsys, "check", family)
        assert (
            code == 0
            and f"{shape}  {name}.weight{bias}{place}\n".replace("s.1.", "s.0.").replace("h.1.", "h.0.") in out
        )
        assert f"  {kind:<5} layers 0-1" in out


def test_check_of_a_hub_id_asks_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("tmerge_tui.hub.locate.find", _not_found)
    code, _, err = inside(tmp_path, monkeypatch, capsys, "check", "org/name@main")
    assert code == 1 and "asked for org/name" in err
    code, _, err = inside(tmp_path, monkeypatch, capsys, "check", "runs/recipe.yaml")
    assert code == 2 and "asked for" not in err


def _not_found(choice: Any) -> Any:
    raise ModelError(f"asked for {choice.model}", "nothing")


def test_models_lists_the_families(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = inside(tmp_path, monkeypatch, capsys, "models")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert (
        "q k v o gate up down" in lines["llama"]
        and "in x out" in lines["gpt2"]
        and "attention only" in lines["mixtral"]
    )
    assert "trust_remote_code" in out and "GGUF" in out


def test_the_demo_takes_its_files_from_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.worker.fakes:whole")
    code, out, _ = inside(tmp_path, monkeypatch, capsys, "demo", "--quiet")
    assert code == 0 and out.startswith("seed 0")
    recipe = load_recipe(tmp_path / "tmerge-demo" / "recipe.yaml")
    assets = shipped.folder() / "demo"
    assert Path(recipe.source.model).parent == Path(recipe.target.model).parent == assets
    assert recipe.calibration.path is not None and Path(recipe.calibration.path).parent == assets
    assert inside(tmp_path, monkeypatch, capsys, "demo", "--quiet", "--output", "other")[0] == 0
    assert (tmp_path / "other" / "recipe.yaml").exists()


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tmerge_tui import cli
    from tmerge_tui.commands import batch

    def broken(*_: Any) -> int:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(batch, "run_demo", broken)
    monkeypatch.setattr(sys, "argv", ["tmerge", "demo"])
    assert cli.main() == 1
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: by zero" in err and "TMERGE_DEBUG=1" in err and "Traceback" not in err
