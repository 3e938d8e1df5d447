"""Transport hints. References: numpy's correlation, the source's own activations under identity plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from tests import by_hand
from tests.engine.methods.transport_merge.plans import HandMade, identity_plan, layout_of
from tests.families import make_family
from tests.tiny import make_model
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.methods.transport_merge import channel_maps
from tmerge_tui.engine.training.examples import collate, pack_blocks, pad_blocks, read_examples
from tmerge_tui.engine.training.hints import HintLoss, HintRows, _Carrier, check_hints, decorrelation
from tmerge_tui.errors import StorageError
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.loading import load_model
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe.adaptation import Hints
from tmerge_tui.run_folder import RunDir

TEXTS = [f"{i} rivers meet where the old road bends to the east" for i in range(5)]


def test_the_loss_is_one_minus_numpys_correlation() -> None:
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator)
    expected = 1 - np.mean([np.corrcoef(X[:, j], Y[:, j])[0, 1] for j in range(4)])
    assert decorrelation(X, Y).item() == pytest.approx(expected, abs=1e-6)
    assert decorrelation(3 * X + 5, 0.1 * X - 2).item() == pytest.approx(0, abs=1e-5)
    assert decorrelation(X, -X).item() == pytest.approx(2, abs=1e-5)


def test_channels_that_do_not_vary_neither_count_nor_give_nan() -> None:
    X = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    Y = X.detach().clone()
    Y[:, 1] = 7.0
    decorrelation(X, Y).backward()
    assert X.grad is not None and torch.isfinite(X.grad).all() and not X.grad[:, 1].any()
    assert decorrelation(X, torch.ones(9, 3)).item() == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("hints") / "model", "llama")


def transports(folder: Path, P: list[list[float]]) -> Any:
    layout = layout_of(folder)
    made: Any = HandMade(layout, layout, torch.tensor(P), identity_plan)
    made.kinds = ("q", "down")
    return made


def test_identity_plans_carry_the_sources_own_zscores_and_the_placebo_permutes_them(model: Path) -> None:
    made = transports(model, [[0.0, 0.5], [0.5, 0.0]])
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(4))
    carried = _Carrier(made, seed=3).carried(lambda m, side: rows, 0, "qkv.in", False)
    Y = made.source.side(1, "qkv.in")  # layer 0 of the target draws from source layer 1 alone
    expected = (rows - Y.mean(0)) / Y.std(0)
    torch.testing.assert_close(carried, expected, rtol=1e-4, atol=1e-5)
    placebo = _Carrier(made, seed=3).carried(lambda m, side: rows, 0, "qkv.in", True)
    order = channel_maps.permutation(3, "qkv.in", 1, 32)
    back = torch.empty(32, dtype=torch.long)
    back[torch.arange(32)] = torch.argsort(order)  # column j of Q[:, order] is order[j]: row i meets argsort(order)[i]
    torch.testing.assert_close(placebo, expected[:, back], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(placebo, carried)


@pytest.mark.parametrize("packed", [False, True])
def test_a_models_own_activations_as_hints_cost_nothing(model: Path, tmp_path: Path, packed: bool) -> None:
    """The rows of each word, pooled by hand from transformers' own hidden states, against what the loss pools."""
    network = AutoModelForCausalLM.from_pretrained(model)
    examples = read_examples([Sample(text) for text in TEXTS], load_tokenizer(model), 0, "auto", placed=True)
    words = tuple(tuple(example.words) for example in examples)
    blocks = (pack_blocks if packed else pad_blocks)(examples, 10**6 if packed else 100)
    batch = collate(blocks)
    seen: list[torch.Tensor] = []
    hook = network.model.layers[1].mlp.down_proj.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with torch.no_grad():
        network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    hook.remove()
    rows = []
    for row, parts in enumerate(batch["parts"]):
        for sample, begin in parts:
            for word in words[sample]:
                rows.append(seen[0][row, [begin + t for t in examples[sample].words[word]]].mean(0))
    run = RunDir.create(tmp_path / "run")
    piece = run.piece("hints-source", "x")
    run.save(piece, {"1.down.in": torch.stack(rows).half()})
    loss = HintLoss(network, layout_of(model), examples, HintRows("x", ((1, "down.in"),), words, (piece,)), 0.5)
    with loss.watching():
        logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found, count = loss.loss(batch, logits)
    assert count == 1 and found.item() == pytest.approx(0, abs=1e-3)
    found.backward()
    assert network.model.embed_tokens.weight.grad is not None
    with loss.watching():
        logits = network(input_ids=batch["input_ids"][:, 3:], attention_mask=batch["attention_mask"][:, 3:]).logits
    assert loss.loss(batch, logits)[0].item() > 0.1, "any rows would do"


@pytest.mark.parametrize(
    ("family", "kind"),
    [("phi3", "q"), ("gpt2", "q"), ("gpt_neox", "q"), ("falcon_40b", "q"), ("falcon_40b", "down"), ("llama", "o")],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_projection_gives_as_hints_costs_nothing(
    tmp_path: Path, family: str, kind: str, checkpointing: bool
) -> None:
    """Its x W^T + b, with W and b split by hand: q out of a fused q, k, v; down, to which Falcon adds in place."""
    folder = make_family(tmp_path / "model", family)
    facts = read_facts(folder, family)
    network = load_model(facts, torch.device("cpu"), torch.float32, None, lambda event: None).requires_grad_(True)
    examples = read_examples([Sample(text) for text in TEXTS], load_tokenizer(folder), 0, "auto", placed=True)
    words = tuple(tuple(example.words) for example in examples)
    batch = collate(pad_blocks(examples, 100))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    projection = facts.layout.get(1, kind)
    assert projection is not None
    module = network.get_submodule(projection.module)
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    network(**inputs)
    hook.remove()
    W, b = by_hand.split(family, load_file(folder / "model.safetensors"), 1)[kind]
    own = seen[0] @ W.T + (0 if b is None else b)
    rows = [own[i, list(examples[i].words[word])].mean(0) for i in range(len(TEXTS)) for word in words[i]]
    run = RunDir.create(tmp_path / "run")
    piece = run.piece("hints-source", "x")
    run.save(piece, {f"1.{kind}.out": torch.stack(rows).half()})
    loss = HintLoss(network, facts.layout, examples, HintRows("x", ((1, f"{kind}.out"),), words, (piece,)), 0.5)
    if checkpointing:
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        for each in network.modules():  # nothing drops out
            each.training = isinstance(each, GradientCheckpointingLayer)
    with loss.watching():
        logits = network(**inputs).logits
    found, count = loss.loss(batch, logits)
    assert count == 1 and found.item() == pytest.approx(0, abs=2e-3)
    (found + logits.float().mean()).backward()
    assert module.weight.grad is not None and torch.isfinite(module.weight.grad).all()


def test_damaged_hints_are_a_storage_error(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    piece = run.piece("hints-source", "x")
    run.save(piece, {"0.q.out": torch.arange(6.0).view(3, 2).half()})
    rows = HintRows("x", ((0, "q.out"),), ((), ((-1, 0, 2), (-1, 3, 4), (-1, 5, 9))), (piece,))
    assert rows.rows(1)[0, "q.out"].tolist() == [[0, 1], [2, 3], [4, 5]] and not len(rows.rows(0)[0, "q.out"])
    piece.write_bytes(piece.read_bytes()[:40])
    with pytest.raises(StorageError, match="delete that file and run again"):
        rows.rows(1)


def test_a_batch_with_few_words_has_no_hint(model: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(model)
    examples = read_examples([Sample("two rivers")], load_tokenizer(model), 0, "auto", placed=True)
    words = tuple(tuple(example.words) for example in examples)
    run = RunDir.create(tmp_path / "run")
    piece = run.piece("hints-source", "x")
    run.save(piece, {"0.qkv.in": torch.zeros(2, 32).half()})
    loss = HintLoss(network, layout_of(model), examples, HintRows("x", ((0, "qkv.in"),), words, (piece,)), 0.5)
    batch = collate(pad_blocks(examples, 100))
    with loss.watching():
        logits = network(input_ids=batch["input_ids"]).logits
    found, count = loss.loss(batch, logits)
    found.backward()  # a batch of nothing else still has a graph to go back through
    assert (found.item(), count) == (0, 0)


def test_sides_that_are_not_aligned_are_a_problem_at_once() -> None:
    assert check_hints(Hints(), ("q", "down"), 4) == []
    (problem,) = check_hints(Hints(), ("q",), 4)
    assert "down.in is not aligned; add down to transport.projections" in problem
    (problem,) = check_hints(Hints(layers=(3, 4)), ("q", "down"), 4)
    assert "layers from 0 to 3" in problem
