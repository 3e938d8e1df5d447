"""LoRA adapters as models. Reference: peft's own merge, saved and loaded by transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.pair import make_pair, recipe_of
from tests.hub.server import Hub
from tests.tiny import make_model
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.adapter import merged, whole_folder
from tmerge_tui.engine.check import prepare
from tmerge_tui.engine.rundir import RunDir
from tmerge_tui.errors import CheckError, ModelError
from tmerge_tui.hub.locate import find, locate
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.recipe import ModelChoice

# peft's own way of asking transformers
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = make_pair(tmp_path_factory.mktemp("pair"))
    return {**made, "transport": {"projections": ["q"]}, "evaluation": {"source": False, "controls": []}}


def make_adapter(base: Path, out: Path, name: str | None = None) -> tuple[Path, dict[str, torch.Tensor]]:
    """A LoRA on q, v and down that is not zero, in `out`; and the weights of peft's merge."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    for key, value in wrapped.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.1)
    wrapped.save_pretrained(out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name or str(base)}))
    return out, wrapped.merge_and_unload().state_dict()


def test_an_adapter_is_merged_as_peft_does_it(hub: Hub, pair: dict[str, Any], tmp_path: Path) -> None:
    adapter, reference = make_adapter(Path(pair["target"]), tmp_path / "adapter")
    folder = whole_folder(ModelChoice(model=str(adapter)))
    after, before = Checkpoint(folder), Checkpoint(Path(pair["target"]))
    assert after.names == before.names and folder.is_relative_to(tmp_path / "hf" / "tmerge")
    changed = {name for name in after.names if not torch.equal(after.read(name), before.read(name))}
    assert changed == {n for n in after.names if any(part in n for part in ("q_proj.w", "v_proj.w", "down_proj.w"))}
    for name in after.names:
        torch.testing.assert_close(after.read(name), reference[name], rtol=0, atol=1e-6)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert whole_folder(ModelChoice(model=str(adapter))) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp  # merged once


def test_a_merge_with_an_adapter_by_hub_id(hub: Hub, pair: dict[str, Any], tmp_path: Path) -> None:
    adapter, _ = make_adapter(Path(pair["target"]), tmp_path / "adapter", "org/base")
    hub.add("org/base", Path(pair["target"]))
    hub.add("org/lora", adapter)
    recipe = recipe_of(pair, target="org/lora", output=str(tmp_path / "run"))
    prepared = prepare(recipe)
    assert [listing.repo for listing in prepared.target.located.downloads] == ["org/lora", "org/base"]
    seen: list[events.Event] = []
    pipeline.run(recipe, RunDir.create(recipe.output), seen.append)
    resolved = json.loads((tmp_path / "run" / "report.json").read_text())["recipe"]["resolved"]["target"]
    assert (resolved["model"], resolved["base"]) == ("org/lora", "org/base")
    assert resolved["base_commit"] == hub.repos["model", "org/base"].commit
    said = [event.message for event in seen if isinstance(event, events.Logged)]
    assert "merging the adapter org/lora onto org/base" in said
    again: list[events.Event] = []
    pipeline.run(recipe, RunDir.create(recipe.output), again.append)
    outcomes = {e.stage: e.outcome for e in again if isinstance(e, events.StageFinished)}
    assert outcomes["download"] == "cached" and outcomes["extract_target"] == "cached"


def test_without_peft_the_extra_is_named(
    hub: Hub, pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make_adapter(Path(pair["target"]), tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CheckError, match=r'target: .*adapter is a LoRA adapter[\s\S]*pip install "tmerge-tui\[lora\]"'):
        prepare(recipe_of(pair, target=str(adapter)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "org/none"}, "the Hub has no model org/none"),
    ],
)
def test_adapters_that_cannot_be_used(
    hub: Hub, pair: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    adapter, _ = make_adapter(Path(pair["target"]), tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        find(ModelChoice(model=str(adapter)))


def test_an_adapter_for_another_model(hub: Hub, pair: dict[str, Any], tmp_path: Path) -> None:
    adapter, _ = make_adapter(Path(pair["target"]), tmp_path / "adapter")
    other = make_model(tmp_path / "other", hidden=64)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError, match="cannot be merged onto"):
        merged(locate(ModelChoice(model=str(adapter))), False)
