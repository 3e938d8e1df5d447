"""Loaded models against transformers itself, streamed ones against those in memory, and what cannot be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny import make_model
from tmerge_tui.errors import MemoryShortage, ModelError, UsageError
from tmerge_tui.events import Event, Warned
from tmerge_tui.machine import Memory
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.loading import free_memory, load_model, pick_device, pick_dtype

CPU = torch.device("cpu")
IDS = torch.arange(2, 22)[None]


def no_event(event: Event) -> None:
    raise AssertionError(event)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    shape = {"layers": 5, "dtype": torch.bfloat16, "max_shard_size": "20KB"}
    return {
        "tied": make_model(root / "tied", "llama", tie_word_embeddings=True, **shape),
        "biased": make_model(root / "biased", "qwen2", **shape),
        "normed": make_model(root / "normed", "gemma2", **shape),
        "single": make_model(root / "single", layers=2),
    }


@pytest.fixture
def single(made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made["single"], tmp_path / "model")


# -- device and type ---------------------------------------------------------------------------------------------------


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "asked", "got"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_device(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, asked: str, got: str) -> None:
    machine(monkeypatch, gpus, mps)
    assert str(pick_device(asked)) == got


@pytest.mark.parametrize(("gpus", "asked"), [(0, "cuda"), (0, "mps"), (2, "cuda:2")])
def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, gpus: int, asked: str) -> None:
    machine(monkeypatch, gpus)
    with pytest.raises(UsageError, match=f"device {asked} is not on this machine") as caught:
        pick_device(asked)
    assert "cpu" in caught.value.expected and ("cuda:1" in caught.value.expected) == (gpus == 2)


def test_type(made: dict[str, Path]) -> None:
    facts = read_facts(made["tied"], "m")
    full = facts.weight_bytes(torch.float32)
    cuda = torch.device("cuda:0")
    for name, device, budget, expected in [
        ("auto", CPU, full, torch.float32),
        ("auto", CPU, full - 1, torch.bfloat16),
        ("auto", cuda, 1, torch.bfloat16),
        ("float32", cuda, 1, torch.float32),
        ("bfloat16", CPU, full, torch.bfloat16),
        ("auto", CPU, None, torch.float32),
    ]:
        dtype, reason = pick_dtype(name, device, facts, budget)
        assert dtype == expected
        assert reason.startswith(str(dtype).removeprefix("torch."))


def test_free_memory_is_a_share_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmerge_tui.machine.memory", lambda: Memory(total=4000, available=1000, limit=2000))
    assert free_memory(CPU) == 600
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 900))
    assert free_memory(torch.device("cuda:0")) == 700


# -- models ------------------------------------------------------------------------------------------------------------


def test_model_in_memory(made: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    facts = read_facts(made["biased"], "m")
    model = load_model(facts, CPU, torch.float32, None, no_event)
    assert capfd.readouterr() == ("", "")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = AutoModelForCausalLM.from_pretrained(made["biased"], dtype=torch.float32)
    assert torch.equal(model(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize("name", ["tied", "biased", "normed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.999, 0.7])
def test_streamed_model_computes_the_same(
    made: dict[str, Path], name: str, dtype: torch.dtype, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = read_facts(made[name], "org/model")
    before = sorted(path.name for path in made[name].iterdir())
    events: list[Event] = []
    budget = int(facts.weight_bytes(dtype) * share)
    model = load_model(facts, CPU, dtype, budget, events.append)
    on_disk = {n.split(".")[2] for n, p in model.named_parameters() if p.is_meta}
    assert all(".layers." in n for n, p in model.named_parameters() if p.is_meta)
    assert sum(p.nbytes for p in model.parameters() if not p.is_meta) <= budget
    [event] = events
    assert isinstance(event, Warned) and event.where == "org/model"
    assert f"{len(on_disk)} of 5 layers are read from disk" in event.message
    assert 1 <= len(on_disk) < 5
    expected = load_model(facts, CPU, dtype, None, no_event)
    with torch.no_grad():
        for _ in range(2):  # weights have to come back after a pass
            assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert sorted(path.name for path in made[name].iterdir()) == before  # no second copy beside the first
    assert capfd.readouterr() == ("", "")


def test_hooks_see_streamed_layers(made: dict[str, Path]) -> None:
    facts = read_facts(made["biased"], "m")
    streamed = load_model(facts, CPU, torch.float32, facts.weight_bytes(torch.float32) // 2, lambda event: None)
    whole = load_model(facts, CPU, torch.float32, None, no_event)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for model in (streamed, whole):
        for projection in facts.layout.projections:
            model.get_submodule(projection.module).register_forward_hook(
                lambda _, args, out, key=model is streamed: seen[key].extend((args[0].clone(), out.clone()))
            )
        with torch.no_grad():
            model(IDS)
    assert len(seen[True]) == 2 * len(facts.layout.projections)
    assert all(torch.equal(a, b) for a, b in zip(seen[True], seen[False], strict=True))


def test_memory_too_small_to_stream(made: dict[str, Path]) -> None:
    facts = read_facts(made["tied"], "m")
    with pytest.raises(MemoryShortage, match=r"embeddings .* and one layer .* exceed the memory of 30 kB"):
        load_model(facts, CPU, torch.float32, 30_000, no_event)


def test_changing_a_loaded_weight_leaves_the_file_alone(single: Path) -> None:
    """Weights of the file's own type are mapped, not read: a change must not reach the file."""
    before = (single / "model.safetensors").read_bytes()
    model = load_model(read_facts(single, "m"), CPU, torch.float32, None, no_event)
    model.model.layers[0].self_attn.q_proj.weight.add_(1.0)
    assert (single / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit(single: Path, change: str) -> None:
    facts = read_facts(single, "m")
    tensors = load_file(single / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    tensors[name] = torch.ones(7)
    if change == "missing":
        del tensors[name]
    save_file(tensors, single / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="m") as caught:
        load_model(facts, CPU, torch.float32, None, no_event)
    assert "layernorm" in caught.value.found and caught.value.hint


def test_file_that_vanished(single: Path) -> None:
    facts = read_facts(single, "m")
    (single / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="m cannot be loaded"):
        load_model(facts, CPU, torch.float32, None, no_event)


def test_memory_that_runs_out_while_loading(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    facts: ModelFacts = read_facts(single, "m")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(MemoryShortage, match="do not fit cpu"):
        load_model(facts, CPU, torch.float32, None, no_event)
