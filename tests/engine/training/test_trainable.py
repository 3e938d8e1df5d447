"""Which tensors of the target's file a training reaches. References: the file's own names, transformers' loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.engine.pair import make_pair, recipe_of
from tests.families import make_family
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.method import Candidate
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.engine.training.fit import _trainable
from tmerge_tui.engine.training.stage import make_setup
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.loading import load_model
from tmerge_tui.run_folder import RunDir


def bare(folder: Path, prefix: str) -> None:
    """As a checkpoint of the bare trunk has it."""
    file = folder / "model.safetensors"
    save_file({name.removeprefix(prefix): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def trainable(
    folder: Path, method: str = "full", frozen: Any = lambda name: False
) -> tuple[list[str], set[str], list[str]]:
    """(names in the file, parameters that are to be trained, warnings)"""
    facts = read_facts(folder, "m")
    model = load_model(facts, torch.device("cpu"), torch.float32, None, lambda event: None)
    said: list[events.Event] = []
    names = _trainable(model, facts, Checkpoint(folder), method, lambda model: (), said.append)
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not free or free == set(names)
    warnings = [event.message for event in said if isinstance(event, events.Warned)]
    return sorted(stored for several in names.values() for stored in several), free, warnings


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("gpt2", "transformer."),
        ("gpt2", ""),
        ("bloom", "transformer."),
        ("opt", "model."),
        ("gpt_neox", ""),
        ("llama", ""),
    ],
)
def test_a_full_training_reaches_every_tensor(tmp_path: Path, family: str, prefix: str) -> None:
    bare(make_family(tmp_path, family), prefix)
    names, free, warnings = trainable(tmp_path)
    assert names == sorted(Checkpoint(tmp_path).names)
    assert len(free) == len(names) and not warnings


def test_low_rank_updates_stay_with_the_projections(tmp_path: Path) -> None:
    bare(make_family(tmp_path, "gpt2"), "transformer.")
    names, free, _ = trainable(tmp_path, method="lora")
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names == sorted(f"h.{layer}.{kind}.weight" for layer in range(2) for kind in kinds)
    assert not free


def test_what_is_put_together_from_several_tensors_stays_as_it_is(tmp_path: Path) -> None:
    names, free, warnings = trainable(make_family(tmp_path, "mixtral"))
    assert names == sorted(name for name in Checkpoint(tmp_path).names if ".experts." not in name)
    assert "model.layers.1.mlp.gate.weight" in free and not any("experts" in name for name in free)
    (warning,) = warnings
    assert warning.startswith("4 parameters are no tensor of the target's file by themselves")


def test_what_text_does_not_reach_is_not_trained(tmp_path: Path) -> None:
    names, _, warnings = trainable(make_family(tmp_path, "gemma3"))
    assert names == sorted(name for name in Checkpoint(tmp_path).names if name.startswith("language_model"))
    assert not warnings


def test_a_bare_trunk_is_trained_measured_and_written(tmp_path: Path) -> None:
    mapping = make_pair(tmp_path)
    bare(make_family(tmp_path / "gpt2", "gpt2"), "transformer.")
    chosen = {
        "samples": 20, "block_length": 32, "packing": "pad", "batch_size": 4, "learning_rate": 1e-3, "max_steps": 2,
        "compare": [], "seeds": [0], "checkpoints": 1,
    }  # fmt: skip
    recipe = recipe_of(mapping, target=str(tmp_path / "gpt2"), adaptation=chosen)
    run, seen = RunDir.create(recipe.output), []
    pipeline.run(recipe, run, seen.append)
    before = load_file(tmp_path / "gpt2" / "model.safetensors")
    (piece,) = run.state.glob("trained-adapted-*.safetensors")
    assert load_file(piece).keys() == before.keys() and len(before) == 28
    after = load_file(run.model / "model.safetensors")
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    _, info = AutoModelForCausalLM.from_pretrained(run.model, output_loading_info=True)
    assert not info["missing_keys"]
    warnings = [event.message for event in seen if isinstance(event, events.Warned)]
    assert not [text for text in warnings if "stay as they are" in text]


def test_memory_that_training_cannot_keep_to_is_a_warning(tmp_path: Path) -> None:
    """Weights that are trained are in memory whole, whatever the recipe allows the passes."""
    whole = read_facts(Path(make_pair(tmp_path)["target"]), "m").weight_bytes(torch.float32)
    for memory, expected in ((whole, 0), (whole - 1, 1)):
        chosen = {"samples": 20, "block_length": 32, "compare": [], "hints": None}
        prepared = prepare(recipe_of(make_pair(tmp_path), adaptation=chosen, memory=memory))
        said: list[events.Event] = []
        nothing: Any = None
        fused = Candidate(0.3, nothing, {}, nothing)
        setup = make_setup(prepared, fused, RunDir(tmp_path / "run"), said.append)
        texts = [event.message for event in said if isinstance(event, events.Warned)]
        assert len([text for text in texts if "does not hold for training" in text]) == expected
        assert not any(parameter.is_meta for parameter in setup.load().parameters())
