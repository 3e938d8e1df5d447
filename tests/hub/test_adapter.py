"""LoRA adapters as models. Reference: peft's own merge, saved and loaded by transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.engine.pair import make_pair, recipe_of
from tests.families import make_family
from tests.hub.server import Hub
from tests.tiny import make_model
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.engine.preflight.lora_merge import merged, whole_folder
from tmerge_tui.errors import CheckError, ModelError
from tmerge_tui.hub.locate import find, locate
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import auto_class
from tmerge_tui.recipe import ModelChoice
from tmerge_tui.run_folder import RunDir

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
    wrapped = fill(peft.get_peft_model(model, config))
    wrapped.save_pretrained(out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name or str(base)}))
    return out, wrapped.merge_and_unload().state_dict()


def fill(wrapped: peft.PeftModel) -> peft.PeftModel:
    """A fresh LoRA adds nothing: B is zero."""
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return wrapped


def rewrite(file: Path, renamed: Callable[[str], str]) -> None:
    save_file({renamed(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


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


@pytest.mark.parametrize(
    ("family", "layer", "bare", "older"),
    [
        ("gemma3", r".*language_model.*\.(q_proj|down_proj)", "", None),
        ("qwen2_vl", ["q_proj", "down_proj"], "", None),
        ("qwen2_vl", ["q_proj", "down_proj"], "", ("model.language_model.", "model.")),
        ("gpt2", ["c_attn"], "transformer.", None),
    ],
    ids=["gemma3", "qwen2_vl", "qwen2_vl of an older transformers", "gpt2 as a bare trunk"],
)
def test_a_base_whose_files_have_other_names(
    hub: Hub, tmp_path: Path, family: str, layer: Any, bare: str, older: tuple[str, str] | None
) -> None:
    """Reference: the file that transformers writes of peft's merge."""
    base = make_family(tmp_path / "base", family)
    rewrite(base / "model.safetensors", lambda name: name.removeprefix(bare))
    model = auto_class(AutoConfig.from_pretrained(base)).from_pretrained(base)
    config = peft.LoraConfig(r=4, target_modules=layer, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    wrapped = fill(peft.get_peft_model(model, config))
    wrapped.save_pretrained(tmp_path / "adapter")
    if older is not None:
        rewrite(tmp_path / "adapter" / "adapter_model.safetensors", lambda name: name.replace(*older))
    whole = wrapped.merge_and_unload()
    whole.save_pretrained(tmp_path / "reference")
    reference = Checkpoint(tmp_path / "reference")

    after = Checkpoint(whole_folder(ModelChoice(model=str(tmp_path / "adapter"))))
    before = Checkpoint(base)
    assert set(after.names) == set(before.names)
    if not bare:
        assert not set(before.names) & {name for name, _ in whole.named_parameters() if "layers.0" in name}
    changed = [name for name in after.names if not torch.equal(after.read(name), before.read(name))]
    assert len(changed) == 2 * (1 if len(layer) == 1 else 2), changed
    for name in after.names:
        torch.testing.assert_close(after.read(name), reference.read(bare + name), rtol=0, atol=1e-6)


def test_an_adapter_whose_file_and_configuration_differ(hub: Hub, pair: dict[str, Any], tmp_path: Path) -> None:
    """peft would go on, and merge only what it has found."""
    adapter, _ = make_adapter(Path(pair["target"]), tmp_path / "adapter")
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ["q_proj", "v_proj"]}))
    with pytest.raises(ModelError, match=r"down_proj\S* is in its file, but not in the base; 4 tensors are"):
        whole_folder(ModelChoice(model=str(adapter)))
    rewrite(file, lambda name: name.replace(".layers.1.", ".blocks.1."))
    with pytest.raises(ModelError, match=r"cannot be merged onto .*layers\.1\.\S* is missing in its file; 4 tensors"):
        whole_folder(ModelChoice(model=str(adapter)))
    assert not list((tmp_path / "hf" / "tmerge").rglob("config.json"))


def test_a_change_to_what_no_file_holds(hub: Hub, tmp_path: Path) -> None:
    """The files of a Mixtral hold every expert by itself, the model all of them in one tensor."""
    base = make_family(tmp_path / "base", "mixtral")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(r=4, target_modules=[], target_parameters=experts, task_type="CAUSAL_LM")
    fill(peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"changes 'model\.layers\.0\.mlp\.experts\.\w+', which .*base does not have"):
        whole_folder(ModelChoice(model=str(tmp_path / "adapter")))


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
