"""One model is one thing: an adapter is its whole merge, wherever it lies and whatever it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.pair import make_pair, recipe_of
from tests.hub.server import Hub
from tests.tiny import make_model, make_tokenizer
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.engine.preflight.download import download_models
from tmerge_tui.engine.preflight.lora_merge import whole_folder
from tmerge_tui.errors import ModelError
from tmerge_tui.hub.locate import find
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.recipe import ModelChoice
from tmerge_tui.run_folder import RunDir

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),  # as users' adapters have it
    pytest.mark.filterwarnings("ignore:Adapter .*invalid shape"),  # peft takes the bias of lora_bias for a cut tensor
]

IDS = torch.arange(1, 40)[None]


def adapt(base: Path, out: Path, **config: Any) -> torch.Tensor:
    """An adapter in `out` all of whose tensors do something; the logits of the base with it."""
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(r=4, task_type="CAUSAL_LM", **config)
    ).eval()
    with torch.no_grad():
        for value in wrapped.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.1)
        logits = wrapped(IDS).logits
    wrapped.save_pretrained(out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))
    return logits


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


ATTENTION = ["q_proj", "v_proj"]
OPT = {"family": "opt", "kv_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32}


@pytest.mark.parametrize(
    ("base", "config"),
    [
        (OPT, {"target_modules": ATTENTION, "bias": "all"}),
        (OPT, {"target_modules": ATTENTION, "bias": "lora_only"}),
        ({"tie_word_embeddings": False}, {"target_modules": ATTENTION, "trainable_token_indices": [5, 6, 7]}),
        ({"tie_word_embeddings": True}, {"target_modules": ATTENTION, "trainable_token_indices": [5, 6, 7]}),
        ({"tie_word_embeddings": False}, {"target_modules": [*ATTENTION, "embed_tokens"]}),
        ({"tie_word_embeddings": False}, {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
        ({"attention_bias": True}, {"target_modules": ATTENTION, "lora_bias": True, "use_dora": False}),
        ({}, {"target_modules": ATTENTION, "use_dora": True}),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items() if k not in ("target_modules", "family")),
)
def test_the_merge_is_all_of_the_adapter(
    hub: Hub, tmp_path: Path, base: dict[str, Any], config: dict[str, Any]
) -> None:
    folder = make_model(tmp_path / "base", **base)
    logits = adapt(folder, tmp_path / "adapter", **config)
    assert not torch.allclose(logits, logits_of(folder), atol=1e-2)
    merged = whole_folder(ModelChoice(model=str(tmp_path / "adapter")))
    torch.testing.assert_close(logits_of(merged), logits, rtol=0, atol=1e-4)
    assert Checkpoint(merged).names == Checkpoint(folder).names


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": [*ATTENTION, "embed_tokens"]},
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
        {"target_modules": [*ATTENTION, "embed_tokens", "lm_head"]},
    ],
    ids=["lora on the embedding", "saved head", "saved embedding", "lora on both"],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:Model has `tie_word", "ignore:.*[Tt]ied.*")
def test_tied_weights_that_would_part_are_refused(hub: Hub, tmp_path: Path, config: dict[str, Any]) -> None:
    """The base's file has one tensor for embedding and head: writing the one would change the other."""
    folder = make_model(tmp_path / "base", tie_word_embeddings=True)
    adapt(folder, tmp_path / "adapter", **config)
    with pytest.raises(ModelError, match="same tensor as") as refused:
        whole_folder(ModelChoice(model=str(tmp_path / "adapter")))
    assert "tie_word_embeddings: false" in refused.value.hint
    assert not list((tmp_path / "hf" / "tmerge").rglob("config.json"))


def test_the_tokenizer_of_the_adapter_comes_whole(hub: Hub, tmp_path: Path) -> None:
    folder, adapter = make_model(tmp_path / "base"), tmp_path / "adapter"
    adapt(folder, adapter, target_modules=ATTENTION)
    (folder / "chat_template.jinja").write_text("base")
    (folder / "added_tokens.json").write_text("{}")
    own = make_tokenizer(300)
    own.add_tokens(["<mine>"])
    own.save_pretrained(adapter)
    (adapter / "merges.txt").write_text("#version: 0.2\n")
    (adapter / "training_args.bin").write_bytes(b"x")
    merged = whole_folder(ModelChoice(model=str(adapter)))
    assert AutoTokenizer.from_pretrained(merged).get_vocab() == own.get_vocab()
    names = {path.name for path in merged.iterdir()}
    assert "merges.txt" in names and not names & {"chat_template.jinja", "added_tokens.json", "training_args.bin"}


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_local_adapter_is_its_merge_from_the_first_stage_on(hub: Hub, tmp_path: Path, role: str) -> None:
    pair = {**make_pair(tmp_path / "pair"), "transport": {"projections": ["q"]}, "evaluation": {"controls": []}}
    adapt(Path(pair[role]), tmp_path / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])
    recipe = recipe_of(pair, **{role: str(tmp_path / "adapter")}, output=str(tmp_path / "run"))
    before = getattr(prepare(recipe), role)
    assert not before.located.whole and before.facts.folder == Path(pair[role])
    with pytest.raises(ValueError, match="not been merged"):
        _ = before.checkpoint
    party = getattr(download_models(prepare(recipe), lambda event: None), role)
    assert party.facts.folder == party.located.folder == party.checkpoint.folder != before.facts.folder
    assert party.facts.fingerprint == party.checkpoint.fingerprint() != before.facts.fingerprint

    scores = []
    for model in (recipe, recipe_of(pair, **{role: str(party.facts.folder)}, output=str(tmp_path / "whole"))):
        pipeline.run(model, RunDir.create(model.output), lambda event: None)
        report = json.loads((Path(model.output) / "report.json").read_text())
        scores.append([score["bits_per_byte"] for score in report["scores"]])
    assert scores[0] == scores[1]
    again: list[events.Event] = []
    pipeline.run(recipe, RunDir.create(recipe.output), again.append)
    assert {e.outcome for e in again if isinstance(e, events.StageFinished) and e.stage.startswith("ex")} == {"cached"}


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*")
def test_an_adapter_of_a_resized_base_is_refused_by_the_check(hub: Hub, tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "pair")
    resized = AutoModelForCausalLM.from_pretrained(pair["target"])
    resized.resize_token_embeddings(330, mean_resizing=False)
    resized.save_pretrained(tmp_path / "resized")
    for saved in (["embed_tokens", "lm_head"], ["lm_head"]):
        adapt(tmp_path / "resized", tmp_path / "adapter", target_modules=ATTENTION, modules_to_save=saved)
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": pair["target"]}))
        (problem,) = check(recipe_of(pair, target=str(tmp_path / "adapter")))
        assert "330 rows" in problem and "has 320" in problem and "resize_token_embeddings(330)" in problem
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (problem,) = check(recipe_of(pair, target=str(tmp_path / "adapter")))
    assert "but no weights" in problem and "checkpoint-N" in problem


def test_an_adapter_beside_a_whole_model(hub: Hub, tmp_path: Path) -> None:
    """transformers loads such a folder as the model with the adapter on it."""
    folder = make_model(tmp_path / "model")
    adapt(folder, tmp_path / "adapter", target_modules=ATTENTION)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((tmp_path / "adapter" / name).read_bytes())
    with pytest.raises(ModelError, match="a whole model and a LoRA adapter"):
        find(ModelChoice(model=str(folder)))
    assert "adapter_config.json" not in {path.name for path in Checkpoint(folder).other_files}
    hub.add("org/both", folder)
    found = find(ModelChoice(model="org/both"))
    assert found.base is None and not (found.folder / "adapter_config.json").exists()
    assert "adapter_model.safetensors" not in {file.path for listing in found.downloads for file in listing.files}


def test_a_folder_of_checkpoints_and_a_base_beside_the_adapter(hub: Hub, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base")
    adapt(folder, tmp_path / "out" / "checkpoint-20", target_modules=ATTENTION)
    pair = make_pair(tmp_path / "pair")
    (problem,) = check(recipe_of(pair, source=str(tmp_path / "out")))
    assert "name the folder inside it: checkpoint-20" in problem
    path = tmp_path / "out" / "checkpoint-20" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "../../base"}))
    base = find(ModelChoice(model=str(path.parent))).base
    assert base is not None and base.folder == folder


def test_a_base_that_has_moved_names_the_adapter(hub: Hub, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base")
    adapt(folder, tmp_path / "adapter", target_modules=ATTENTION)
    folder.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"adapter is an adapter whose base cannot be used: no model folder \S*base"):
        find(ModelChoice(model=str(tmp_path / "adapter")))
