"""Adaptation. References: the analytic gradient, fine-tuning of the fused weights, an uninterrupted training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.engine.methods.transport_merge.plans import Pair
from tests.engine.pair import make_pair, recipe_of
from tests.tiny import make_model
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.methods.transport_merge.fusion import FusedUpdate
from tmerge_tui.engine.training import trainer
from tmerge_tui.engine.training.examples import pad_blocks, read_examples
from tmerge_tui.engine.training.residual import Residual, attach
from tmerge_tui.engine.training.trainer import train
from tmerge_tui.engine.weights.install import installed
from tmerge_tui.errors import CheckError, DataError, NumericsError
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.run_folder import RunDir

CPU = torch.device("cpu")
TEXTS = [f"{i} rivers meet where the old road {'bends ' * (i % 5)}to the east" for i in range(24)]
ADAPT = {
    "samples": 40, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 2, "learning_rate": 1e-3,
    "compare": ["sft", "distill"], "hints": {"weight": 0.5, "with_distill": True}, "seeds": [0, 1], "checkpoints": 1,
    "max_steps": 4,
}  # fmt: skip


@pytest.fixture
def fused(tmp_path: Path) -> tuple[Path, FusedUpdate]:
    """A target with biases, and a fusion of rows, columns and biases of it."""
    target = make_model(tmp_path / "target", "qwen2")
    source = make_model(tmp_path / "source", "qwen2", layers=3, hidden=48, heads=6, seed=1)
    pair = Pair.make(tmp_path, target, source, torch.tensor([[0.3, 0.0, 0.2], [0.1, 0.4, 0.0]]))
    fusion = pair.fuse(("q", "o", "gate", "down"), k=8, r=None, coupling="barycentric", alpha=0.4)
    return target, FusedUpdate(fusion, pair.target, 0.4, "free")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def examples_of(folder: Path) -> Any:
    return read_examples([Sample(text) for text in TEXTS], load_tokenizer(folder), 32, "auto")


def options(**changes: Any) -> Adaptation:
    given = {
        "batch_size": 4,
        "accumulation": 2,
        "learning_rate": 1e-3,
        "schedule": "linear",
        "warmup": 0.1,
        "epochs": 3,
    }
    return Adaptation(**{**given, **changes})


def trained(model: Any, folder: Path, out: Path, **changes: Any) -> trainer.Trained:
    blocks = pad_blocks(examples_of(folder), 32)
    return train(model, blocks, [], options(**changes), 0, (), out, CPU, lambda step: None, pytest.fail)


def residuals(model: Any) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]


def test_with_the_residual_the_model_computes_as_the_fused_one(fused: tuple[Path, FusedUpdate]) -> None:
    folder, fusion = fused
    ids = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    ours, plain = load(folder), load(folder)
    before = plain(ids).logits
    attached = attach(ours, fusion)
    with installed(plain, fusion), torch.no_grad():
        expected = plain(ids).logits
    assert (expected - before).abs().max() > 1e-3, "the fusion changes nothing, so this test says nothing"
    torch.testing.assert_close(ours(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert len(attached) == len(residuals(ours)) > 8


def test_the_gradient_of_the_base_is_the_gradient_of_the_sum() -> None:
    """L = |x W^T - y|^2 / 2 has dL/dW = (x W^T - y)^T x, at W = W_base + Delta."""
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(5, 4, bias=False)
    base = linear.weight.detach().clone()
    delta = torch.randn(2, 5, generator=generator)
    torch.nn.utils.parametrize.register_parametrization(linear, "weight", Residual(0, torch.tensor([1, 3]), delta))
    x, y = torch.randn(7, 5, generator=generator), torch.randn(7, 4, generator=generator)
    ((linear(x) - y) ** 2).sum().div(2).backward()
    W = base.clone()
    W[[1, 3]] += delta
    torch.testing.assert_close(linear.parametrizations.weight.original.grad, (x @ W.T - y).T @ x)
    assert [name for name, _ in linear.named_parameters()] == ["parametrizations.weight.original"]


def test_frozen_means_frozen(fused: tuple[Path, FusedUpdate], tmp_path: Path) -> None:
    folder, fusion = fused
    model = load(folder)
    attach(model, fusion)
    before = [residual.delta.clone() for residual in residuals(model)]
    base = model.model.layers[0].self_attn.q_proj.parametrizations.weight.original.detach().clone()
    trained(model, folder, tmp_path / "training")
    assert all(torch.equal(a, b.delta) for a, b in zip(before, residuals(model), strict=True))
    after = model.model.layers[0].self_attn.q_proj.parametrizations.weight.original
    assert not torch.equal(after, base), "nothing was trained"


@pytest.mark.parametrize("decay", [0.0, 20.0])
def test_it_is_fine_tuning_of_the_fused_weights_unless_weights_decay(
    fused: tuple[Path, FusedUpdate], tmp_path: Path, decay: float
) -> None:
    """Residual frozen, W_base trained = the fused weights trained; decay pulls W_base and W to different places."""
    folder, fusion = fused
    ours, plain = load(folder), load(folder)
    attach(ours, fusion)
    attach(plain, fusion)
    for module in list(plain.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            torch.nn.utils.parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    trained(ours, folder, tmp_path / "a", weight_decay=decay)
    trained(plain, folder, tmp_path / "b", weight_decay=decay)
    mine = ours.model.layers[0].self_attn.q_proj.weight
    theirs = plain.model.layers[0].self_attn.q_proj.weight
    gap = (mine - theirs).abs().max().item()
    # rounding grows: Adam divides by the size of gradients, some of which are rounding themselves
    assert gap < 2e-4 if decay == 0 else gap > 2e-3


def test_resuming_gives_the_weights_of_an_uninterrupted_training(
    fused: tuple[Path, FusedUpdate], tmp_path: Path
) -> None:
    folder, fusion = fused

    class Killed(Exception):
        pass

    def model() -> Any:
        made = load(folder)
        attach(made, fusion)
        return made

    def attempt(learner: Any, out: Path, stop: int | None) -> trainer.Trained:
        def report(step: trainer.Step) -> None:
            if step.step == stop:
                raise Killed

        blocks = pad_blocks(examples_of(folder), 32)
        return train(learner, blocks, [], options(checkpoints=9), 0, (), out, CPU, report, pytest.fail)

    straight, broken = model(), model()
    first = attempt(straight, tmp_path / "straight", None)
    with pytest.raises(Killed):
        attempt(broken, tmp_path / "broken", 5)
    assert list((tmp_path / "broken").glob("checkpoint-*"))
    resumed = model()
    second = attempt(resumed, tmp_path / "broken", None)
    expected = dict(straight.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in resumed.named_parameters())
    assert (first.steps, first.tokens) == (second.steps, second.tokens)
    assert first.curve[-1] == second.curve[-1]


def test_training_stops_when_the_validation_split_gets_worse(fused: tuple[Path, FusedUpdate], tmp_path: Path) -> None:
    folder, _ = fused
    blocks = pad_blocks(examples_of(folder), 32)
    model = load(folder)
    fast = options(learning_rate=0.3, epochs=20, patience=1)
    figures = train(model, blocks[:20], blocks[20:], fast, 0, (), tmp_path / "t", CPU, lambda step: None, pytest.fail)
    assert figures.steps < trainer.steps_of(fast, 20)
    losses = [loss for _, loss in figures.measured]
    with torch.no_grad():
        batch = trainer.collate(blocks[20:])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        kept = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert kept.item() == pytest.approx(min(losses), rel=1e-4), "the best model is not the one that is left"


def test_gradient_checkpointing_and_packing_train_the_same_way(fused: tuple[Path, FusedUpdate], tmp_path: Path) -> None:
    folder, fusion = fused
    models = []
    for i, checkpointing in enumerate((False, True)):
        model = load(folder)
        attach(model, fusion)
        trained(model, folder, tmp_path / str(i), gradient_checkpointing=checkpointing, epochs=1)
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_is_an_error(fused: tuple[Path, FusedUpdate], tmp_path: Path) -> None:
    folder, _ = fused
    model = load(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        trained(model, folder, tmp_path / "t", epochs=1)


# ---- through the pipeline


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def run(mapping: dict[str, Any], **changes: Any) -> tuple[RunDir, list[events.Event]]:
    recipe = recipe_of(mapping, **changes)
    seen: list[events.Event] = []
    folder = RunDir.create(recipe.output)
    pipeline.run(recipe, folder, seen.append)
    return folder, seen


@pytest.fixture(scope="module")
def finished(pair: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, list[events.Event]]:
    return run(pair, adaptation=ADAPT, output=str(tmp_path_factory.mktemp("run") / "run"))


def report_of(folder: RunDir) -> dict[str, Any]:
    return json.loads((folder.path / "report.json").read_text())


def test_every_method_is_trained_on_the_same_tokens_and_measured(
    finished: tuple[RunDir, list[events.Event]],
) -> None:
    folder, seen = finished
    adaptation = report_of(folder)["adaptation"]
    names = ["adapted", "hinted", "hinted_permuted", "sft", "distilled", "distilled_hinted"]
    assert [row["model"] for row in adaptation["rows"]] == ["target", "fused", *names]
    assert all(len(row["seeds"]) == 2 and row["spread"] is not None for row in adaptation["rows"][2:])
    assert len({(t["tokens"], t["steps"]) for t in adaptation["trainings"]}) == 1
    assert len({t["loss"] for t in adaptation["trainings"]}) == 12, "two trainings are one and the same"
    assert {(e.method, e.seed) for e in seen if isinstance(e, events.TrainingStep)} == {
        (name, seed) for name in names for seed in (0, 1)
    }
    assert "different tokenizers" in adaptation["distillation"]
    for name in ("report.md", "report.html"):
        text = (folder.path / name).read_text()
        assert "placebo: hints permuted" in text and "different tokenizers" in text


def test_the_trained_model_is_the_one_in_model(
    pair: dict[str, Any], finished: tuple[RunDir, list[events.Event]]
) -> None:
    folder, seen = finished
    _, info = AutoModelForCausalLM.from_pretrained(folder.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    target = load_file(Path(pair["target"]) / "model.safetensors")
    fused = load_file(folder.path / "model-alpha-0.3" / "model.safetensors")
    ours = load_file(folder.model / "model.safetensors")
    assert ours.keys() == target.keys()
    assert all(not torch.equal(ours[name], fused[name]) for name in target)
    output = report_of(folder)["output"]
    assert output[0] == {"alpha": 0.3, "folder": "model", "trained": True}
    finish = next(e for e in seen if isinstance(e, events.RunFinished))
    assert finish.output == str(folder.model)


def test_folded_and_unfolded_logits_are_equal(
    pair: dict[str, Any], finished: tuple[RunDir, list[events.Event]]
) -> None:
    folder, _ = finished
    kept = {path: load_file(path) for path in folder.state.glob("trained-hinted-*.safetensors")}
    ids = torch.tensor([[3, 5, 8, 13, 21]])
    logits = AutoModelForCausalLM.from_pretrained(folder.model)(ids).logits
    found = []
    for tensors in kept.values():
        model = load(Path(pair["target"]))
        model.load_state_dict(tensors, strict=False)
        found.append(torch.equal(model(ids).logits, logits))
    assert found.count(True) == 1, "no training gives the folded model's logits"


def test_stages_run_as_announced(finished: tuple[RunDir, list[events.Event]]) -> None:
    _, seen = finished
    announced = [s["name"] for s in next(e for e in seen if isinstance(e, events.RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == announced
    assert {"hints", "adapt", "fold_trained", "measure_trained"} <= set(announced)


def test_running_again_trains_nothing_and_one_more_seed_only_itself(
    pair: dict[str, Any], finished: tuple[RunDir, list[events.Event]]
) -> None:
    output = str(finished[0].path)
    before = (finished[0].model / "model.safetensors").read_bytes()
    _, seen = run(pair, adaptation=ADAPT, output=output)
    assert not [e for e in seen if isinstance(e, events.TrainingStep)]
    outcome = {e.stage: e.outcome for e in seen if isinstance(e, events.StageFinished)}
    stages = ("hints", "adapt", "fold_trained", "measure_trained")
    assert {outcome[stage] for stage in stages} == {"cached"}
    assert (finished[0].model / "model.safetensors").read_bytes() == before
    _, seen = run(pair, adaptation={**ADAPT, "seeds": [0, 1, 2], "hints": None, "compare": []}, output=output)
    assert {(e.method, e.seed) for e in seen if isinstance(e, events.TrainingStep)} == {("adapted", 2)}


def test_low_rank_updates_fold_into_projections_only(pair: dict[str, Any], tmp_path: Path) -> None:
    chosen = {**ADAPT, "method": "lora", "lora_rank": 4, "compare": [], "hints": {"weight": 0.5}, "seeds": [0]}
    folder, _ = run(pair, adaptation=chosen, output=str(tmp_path / "run"))
    fused = load_file(folder.path / "model-alpha-0.3" / "model.safetensors")
    ours = load_file(folder.model / "model.safetensors")
    changed = {name for name in fused if not torch.equal(fused[name], ours[name])}
    assert changed and all("proj.weight" in name for name in changed)
    assert {name.split(".")[-2] for name in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_a_teacher_with_the_same_tokenizer_is_compared_on_logits(tmp_path: Path) -> None:
    mapping = make_pair(tmp_path, target="llama")
    make_model(tmp_path / "source", "llama", hidden=48, layers=3, intermediate=64, seed=1)
    chosen = {**ADAPT, "compare": "distill", "hints": None, "seeds": 0}
    folder, _ = run(mapping, adaptation=chosen)
    adaptation = report_of(folder)["adaptation"]
    assert "same tokenizer" in adaptation["distillation"]
    assert [row["model"] for row in adaptation["rows"]] == ["target", "fused", "adapted", "distilled"]
    assert any("Plain fine-tuning was not measured" in s for s in report_of(folder)["verdict"]["sentences"])


def test_problems_are_found_before_any_work(pair: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        "transport": {"projections": ["q"]},
        "adaptation": {**ADAPT, "path": str(tmp_path / "none.txt"), "hints": {"sides": ["down.in"], "layers": [7]}},
        "output": str(tmp_path / "run"),
    }
    changes["adaptation"].pop("compare")
    with pytest.raises(CheckError) as caught:
        run(pair, **changes)
    text = str(caught.value)
    assert "down.in is not aligned; add down" in text and "layers from 0 to 1" in text and "none.txt" in text


def test_text_of_its_own_never_holds_the_holdout(pair: dict[str, Any], tmp_path: Path) -> None:
    chosen = {**ADAPT, "path": pair["calibration"]["path"], "samples": 1000, "compare": [], "hints": None, "seeds": [0]}
    folder, seen = run(pair, adaptation=chosen, output=str(tmp_path / "run"))
    assert report_of(folder)["adaptation"]["samples"] == 70
    assert any("held out for measuring" in e.message for e in seen if isinstance(e, events.Warned))


def test_answers_need_chat_messages(pair: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no answers to train on"):
        run(pair, adaptation={**ADAPT, "answer_only": True}, output=str(tmp_path / "run"))
