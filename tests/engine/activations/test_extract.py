"""Extraction. References: forward passes written out by hand, and one unpadded sample at a time through plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tests.tiny import LINES, make_model, make_tokenizer
from tmerge_tui.engine.activations import extract as room
from tmerge_tui.engine.activations.extract import Activations, extract
from tmerge_tui.engine.activations.pooling import Rows, plan_rows
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.errors import MemoryShortage, ModelError, NumericsError, StorageError
from tmerge_tui.events import Event, StageFinished, StageProgressed, Warned
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.layout import SIDES
from tmerge_tui.models.loading import load_model
from tmerge_tui.recipe import PROJECTIONS, Calibration
from tmerge_tui.run_folder import RunDir

TEXTS = [line[: 12 + 5 * i] for i, line in enumerate(LINES[:6])]
SAMPLES = [Sample(text=text) for text in TEXTS]
CPU = torch.device("cpu")


@dataclass
class Bench:
    """A tiny model with everything `extract` asks for, and what it was asked."""

    facts: ModelFacts
    model: Any
    tokenizer: Any
    run: RunDir
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    events: list[Event] = field(default_factory=list)
    loads: int = 0

    def loaded(self) -> LoadedModel:
        def load() -> nn.Module:
            self.loads += 1
            return self.model

        return LoadedModel("target", self.facts, self.tokenizer, load, self.device, self.dtype)

    def extract(self, rows: Rows | None = None, kinds: tuple[str, ...] = PROJECTIONS, **options: Any) -> Activations:
        samples = options.pop("samples", SAMPLES)
        calibration = Calibration(path="unused", **{"max_length": 64, **options})
        rows = rows or self.rows(samples, calibration)
        return extract(self.loaded(), samples, rows, kinds, calibration, self.run, self.events.append)

    def rows(self, samples: list[Sample], calibration: Calibration) -> Rows:
        return plan_rows(
            samples, [self.tokenizer], calibration.max_length, calibration.pooling, calibration.chat_template
        )

    def warnings(self) -> list[str]:
        return [e.message for e in self.events if isinstance(e, Warned)]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    def make(family: str = "llama", **config: Any) -> Bench:
        folder = make_model(tmp_path / family, family, **config)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # fresh models have zero biases, which would hide a missing one
                parameter.data.normal_(generator=generator)
        return Bench(read_facts(folder, "tiny"), model, make_tokenizer(), RunDir.create(tmp_path / "run"))

    return make


def tensors(found: Activations) -> dict[str, Tensor]:
    return {
        f"{layer}.{side}": found.side(layer, side)
        for layer in range(found.layers)
        for side in SIDES
        if found.layout.width(layer, side) is not None
    }


def one_by_one(model: nn.Module, layout: Any, ids: list[int]) -> dict[str, Tensor]:
    """Every side of one unpadded sample [tokens, n], through the whole model and the plainest hooks."""
    seen: dict[str, Tensor] = {}
    handles = []
    shared = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "mlp", "up": "mlp"}
    for p in layout.projections:

        def hook(_: nn.Module, args: Any, output: Tensor, p: Any = p) -> None:
            seen[f"{p.layer}.{shared.get(p.kind, p.kind)}.in"] = args[0][0]
            seen[f"{p.layer}.{p.kind}.out"] = output[0]

        handles.append(model.get_submodule(p.module).register_forward_hook(hook))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_layer_0_against_a_forward_pass_written_by_hand(bench: Callable[..., Bench], family: str) -> None:
    b = bench(family, attention_bias=family == "llama")
    w = {k.removeprefix("model.layers.0."): v for k, v in b.model.state_dict().items()}
    heads, kv, size = 4, 2, 8

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return w[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + b.model.config.rms_norm_eps)

    def turn(x: Tensor) -> Tensor:  # rotary pairs (i, i + d/2), [heads, t, size]
        angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** -(torch.arange(0, size, 2) / size)
        a, c = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * angle.cos() - c * angle.sin(), c * angle.cos() + a * angle.sin()], -1)

    expected: dict[str, list[Tensor]] = {}
    for text in TEXTS:
        ids = torch.tensor(b.tokenizer(text)["input_ids"])
        t = len(ids)
        h = w["model.embed_tokens.weight"][ids]
        x = norm(h, "input_layernorm.weight")
        sides = {"qkv.in": x}
        q, k, v = (linear(x, f"self_attn.{kind}_proj") for kind in "qkv")
        sides |= {"q.out": q, "k.out": k, "v.out": v}
        queries = turn(q.view(t, heads, size).transpose(0, 1))
        keys = turn(k.view(t, kv, size).transpose(0, 1)).repeat_interleave(heads // kv, 0)
        values = v.view(t, kv, size).transpose(0, 1).repeat_interleave(heads // kv, 0)
        scores = (queries @ keys.transpose(1, 2) / size**0.5).masked_fill(~torch.ones(t, t).tril().bool(), -torch.inf)
        sides["o.in"] = (scores.softmax(-1) @ values).transpose(0, 1).reshape(t, -1)
        sides["o.out"] = linear(sides["o.in"], "self_attn.o_proj")
        h = h + sides["o.out"]
        sides["mlp.in"] = norm(h, "post_attention_layernorm.weight")
        sides["gate.out"], sides["up.out"] = (linear(sides["mlp.in"], f"mlp.{kind}_proj") for kind in ("gate", "up"))
        sides["down.in"] = F.silu(sides["gate.out"]) * sides["up.out"]
        sides["down.out"] = linear(sides["down.in"], "mlp.down_proj")
        for side, value in sides.items():
            expected.setdefault(side, []).append(value.mean(0))
    assert set(expected) == set(SIDES)
    found = b.extract(batch_size=4)
    assert b.model.get_submodule("model.layers.0.self_attn.q_proj").bias is not None
    for side, rows in expected.items():
        torch.testing.assert_close(found.side(0, side), torch.stack(rows), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "olmo2"])
def test_rows_are_means_over_real_tokens_whatever_the_batch(bench: Callable[..., Bench], family: str) -> None:
    b = bench(family)
    layout = b.facts.layout
    alone = [one_by_one(b.model, layout, b.tokenizer(text)["input_ids"]) for text in TEXTS]
    for batch_size in (1, 4):
        b.run = RunDir.create(b.run.path.with_name(f"run{batch_size}"))
        found = tensors(b.extract(batch_size=batch_size))
        assert len(found) == 2 * len(SIDES)
        for name, rows in found.items():
            expected = torch.stack([sides[name].mean(0) for sides in alone])
            torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_forward_keeps_fp32_statistics(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.model, b.dtype = b.model.to(torch.bfloat16), torch.bfloat16
    ids = b.tokenizer(TEXTS[5])["input_ids"]
    sides = one_by_one(b.model, b.facts.layout, ids)
    found = b.extract(batch_size=1).side(1, "o.out")[5]
    torch.testing.assert_close(found, sides["1.o.out"].double().mean(0).float(), atol=1e-6, rtol=1e-5)
    assert not torch.equal(found, found.to(torch.bfloat16).float())


def test_only_the_sides_of_the_asked_projections_are_kept(bench: Callable[..., Bench]) -> None:
    found = bench().extract(kinds=("v", "down"))
    assert found.side(1, "qkv.in").shape == (6, 32) and found.side(1, "down.in").shape == (6, 48)
    with pytest.raises(KeyError, match=r"1\.q\.out"):
        found.side(1, "q.out")


def test_span_rows_are_means_over_the_tokens_of_a_word(bench: Callable[..., Bench]) -> None:
    b = bench()
    samples = [Sample(text="Two  rivers\nmeet, ok"), Sample(text="zq Bread")]
    found = b.extract(samples=samples, pooling="span")
    sides = [one_by_one(b.model, found.layout, b.tokenizer(s.text)["input_ids"]) for s in samples]
    expected = []
    for sample, side in zip(samples, sides, strict=True):
        pieces = b.tokenizer.convert_ids_to_tokens(b.tokenizer(sample.text)["input_ids"])
        groups: list[list[int]] = [[]]
        for position, piece in enumerate(pieces):  # Ġ and Ċ are byte-level BPE's space and newline
            letters = piece.strip("ĠĊ")
            if piece[0] in "ĠĊ" and groups[-1]:
                groups.append([])
            if letters:
                groups[-1].append(position)
        expected += [side["1.q.out"][group].mean(0) for group in groups]
    assert found.rows == len(expected) == 6
    torch.testing.assert_close(found.side(1, "q.out"), torch.stack(expected), atol=1e-6, rtol=1e-4)


def test_chunks_of_few_bytes_give_the_same_rows(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    whole = b.extract(pooling="span")
    monkeypatch.setattr(room, "CHUNK_BYTES", 20_000)
    cut = b.extract(pooling="span")
    assert len(whole.pieces) == 1 and len(cut.pieces) == 6
    for name, rows in tensors(whole).items():
        torch.testing.assert_close(tensors(cut)[name], rows, atol=1e-6, rtol=1e-5)


def test_a_finished_chunk_is_not_computed_again(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_SAMPLES", 2)
    b = bench()
    first = b.extract()
    before = tensors(first)
    assert len(first.pieces) == 3 and b.loads == 1
    b.events.clear()
    again = b.extract(batch_size=1)
    assert b.loads == 1 and again.key == first.key
    assert [e.outcome for e in b.events if isinstance(e, StageFinished)] == ["cached"]
    first.pieces[1].unlink()
    kept = first.pieces[0].stat().st_mtime_ns
    resumed = b.extract()
    assert b.loads == 2 and first.pieces[0].stat().st_mtime_ns == kept
    assert all(torch.equal(rows, before[name]) for name, rows in tensors(resumed).items())
    last = [e for e in b.events if isinstance(e, StageProgressed)][-1]
    assert last.done == last.total and last.unit == "tokens"


def test_the_key_names_what_the_rows_depend_on(bench: Callable[..., Bench]) -> None:
    b = bench()
    keys = [
        b.extract().key,
        b.extract(max_length=8).key,
        b.extract(pooling="span").key,
        b.extract(kinds=("q",)).key,
        b.extract(samples=SAMPLES[::-1]).key,
    ]
    b.dtype = torch.bfloat16
    keys.append(b.extract().key)
    assert len(set(keys)) == 6


def limit_memory(model: nn.Module, samples: int, error: Exception) -> None:
    def forbid(_: nn.Module, args: Any) -> None:
        if args[0].shape[0] > samples:
            raise error

    model.get_submodule("model.layers.1.self_attn.o_proj").register_forward_pre_hook(forbid)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_halves_the_batch_and_says_so(bench: Callable[..., Bench], error: Exception) -> None:
    b = bench()
    plenty = tensors(b.extract())
    b.run = RunDir.create(b.run.path.with_name("short"))
    limit_memory(b.model, 2, error)
    short = tensors(b.extract(batch_size=16))
    assert b.warnings() == ["out of memory: batch size is now 3", "out of memory: batch size is now 1"]
    for name, rows in plenty.items():
        torch.testing.assert_close(short[name], rows, atol=1e-6, rtol=1e-5)


def test_one_sample_too_many_is_a_memory_shortage_and_other_errors_stay(bench: Callable[..., Bench]) -> None:
    b = bench()
    limit_memory(b.model, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(MemoryShortage, match="no memory for one text") as caught:
        b.extract()
    assert "max_length" in caught.value.hint
    assert not list(b.run.state.iterdir())
    b = bench()
    limit_memory(b.model, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        b.extract()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(bench: Callable[..., Bench], value: float) -> None:
    b = bench()
    b.model.get_submodule("model.layers.1.self_attn.v_proj").weight.data[3, 3] = value
    with pytest.raises(NumericsError, match=r"tiny: activations of layer 1, side v\.out hold NaN or Inf"):
        b.extract()
    assert not list(b.run.state.iterdir())


def test_a_shared_side_that_is_not_shared_is_refused(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.model.get_submodule("model.layers.1.self_attn.k_proj").register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_proj does not read the tensor"):
        b.extract()


def test_a_projection_that_never_runs_or_runs_twice_is_refused(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.model.model.layers[1].mlp.forward = lambda x: x
    with pytest.raises(ModelError, match=r"1\.mlp\.in, .* did not run"):
        b.extract()
    b = bench()
    mlp = b.model.model.layers[1].mlp
    once = mlp.forward
    mlp.forward = lambda x: once(x) + once(x)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.gate_proj ran twice"):
        b.extract()


def test_hooks_are_gone_and_no_logits_are_computed(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    b.extract()
    assert not any(m._forward_hooks for m in b.model.modules())


def test_a_streamed_model_gives_the_same_rows(bench: Callable[..., Bench]) -> None:
    b = bench("qwen2")
    b.model.save_pretrained(b.facts.folder)  # with its biases
    whole = tensors(b.extract())
    b.run = RunDir.create(b.run.path.with_name("streamed"))
    outside = b.model.get_input_embeddings().weight.numel() * 2 + 32
    budget = 4 * (outside + sum(p.numel() for p in b.model.model.layers[0].parameters()))
    b.model = load_model(read_facts(b.facts.folder, "tiny"), CPU, b.dtype, budget, b.events.append)
    assert "2 of 2 layers are read from disk" in b.warnings()[0]
    assert all(torch.equal(rows, whole[name]) for name, rows in tensors(b.extract()).items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pooling", ["sample", "span"])
def test_a_gpu_gives_the_same_rows(bench: Callable[..., Bench], pooling: str) -> None:
    b = bench("qwen2")
    expected = tensors(b.extract(pooling=pooling))
    b.run, b.device = RunDir.create(b.run.path.with_name("gpu")), torch.device("cuda")
    b.model = b.model.cuda()
    for name, rows in tensors(b.extract(pooling=pooling)).items():
        torch.testing.assert_close(rows, expected[name], atol=1e-5, rtol=1e-4)


def test_a_damaged_piece_is_a_storage_error(bench: Callable[..., Bench]) -> None:
    found = bench().extract()
    found.pieces[0].write_bytes(b"torn")
    with pytest.raises(StorageError, match="delete that file and run again"):
        found.side(0, "q.out")
