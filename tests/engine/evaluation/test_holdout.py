"""Scores against a hand computation with F.cross_entropy, intervals against known answers, and the table as a whole."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.methods.transport_merge.plans import Pair
from tests.tiny import LINES, make_model
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation import bits_per_byte as scoring
from tmerge_tui.engine.evaluation.bits_per_byte import Scores, paired_interval, score
from tmerge_tui.engine.evaluation.evaluator import Evaluator
from tmerge_tui.engine.evaluation.holdout import Measured, evaluate
from tmerge_tui.engine.methods.method import Candidate
from tmerge_tui.engine.methods.transport_merge.fusion import FusedUpdate
from tmerge_tui.engine.weights.export import export
from tmerge_tui.engine.weights.install import installed
from tmerge_tui.errors import DataError, MemoryShortage, ModelError
from tmerge_tui.events import Generated, Metric, StageFinished, StageProgressed
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.generation import continue_prompts
from tmerge_tui.models.loading import load_model
from tmerge_tui.recipe import PROJECTIONS
from tmerge_tui.recipe.evaluation import Evaluation

TEXTS = [*LINES[:6], "ü", "naïve café — ŋ", LINES[0] + " " + LINES[1]]
SAMPLES = [Sample(text=text) for text in TEXTS]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("score") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load(folder)[0]


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return load(folder)[1]


def by_hand(model: Any, ids: list[int], first: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return float(F.cross_entropy(logits[first - 1 : -1], torch.tensor(ids[first:]), reduction="sum")) / math.log(2)


def test_scores_with_a_begin_of_text_token(model: Any, tokenizer: Any) -> None:
    """Every byte is scored, behind one begin-of-text token."""
    scores = score(model, tokenizer, SAMPLES, batch_size=4)
    for text, bits, count in zip(TEXTS, scores.bits, scores.bytes, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert bits == pytest.approx(by_hand(model, ids, 1), rel=1e-5)
        assert count == len(text.encode())
    assert scores.bits_per_byte == pytest.approx(sum(scores.bits) / sum(scores.bytes))


def test_without_a_begin_of_text_token_the_first_character_is_not_scored(model: Any, tokenizer: Any) -> None:
    tokenizer.bos_token = None
    scores = score(model, tokenizer, SAMPLES)
    for text, bits, count in zip(TEXTS, scores.bits, scores.bytes, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if text == "ü":  # two byte tokens of one character: nothing is left to score
            assert (bits, count) == (0, 0)
            continue
        assert bits == pytest.approx(by_hand(model, ids, 1), rel=1e-5)
        assert count == len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())


def test_truncation_counts_only_what_is_scored(model: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"][:4]
    scores = score(model, tokenizer, SAMPLES[:1], max_length=5)
    assert scores.bytes == (len(tokenizer.decode(ids).encode()),)
    assert scores.bits[0] == pytest.approx(by_hand(model, [tokenizer.bos_token_id, *ids], 1), rel=1e-5)


def test_truncation_does_not_cut_a_character(model: Any, tokenizer: Any) -> None:
    assert len(tokenizer("aŋ")["input_ids"]) == 3  # ŋ is two tokens
    scores = score(model, tokenizer, [Sample(text="aŋb")], max_length=3)
    assert scores.bytes == (1,)
    assert scores.bits[0] == pytest.approx(by_hand(model, [0, tokenizer("a")["input_ids"][0]], 1), rel=1e-5)


def test_scores_do_not_depend_on_the_batch_or_on_how_logits_are_cut(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(model, tokenizer, SAMPLES, batch_size=1)
    monkeypatch.setattr(scoring, "LOGITS", 3 * 4 * 320)  # three positions of four texts
    cut = score(model, tokenizer, SAMPLES, batch_size=4)
    assert cut.bytes == whole.bytes
    assert cut.bits == pytest.approx(whole.bits, rel=1e-5)
    assert "forward" not in model.model.__dict__  # the decoder is as it was


def test_the_head_is_the_models_own(tmp_path: Path) -> None:
    """Gemma2 bends its logits after the head: scores see it."""
    gemma, tokenizer = load(make_model(tmp_path / "gemma2", "gemma2", final_logit_softcapping=0.5))
    with torch.no_grad():
        gemma.lm_head.weight.mul_(30)
    ids = [tokenizer.bos_token_id, *tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]]
    assert score(gemma, tokenizer, SAMPLES[:1]).bits[0] == pytest.approx(by_hand(gemma, ids, 1), rel=1e-5)


def test_losses_of_a_bf16_model_are_fp32(folder: Path, tokenizer: Any) -> None:
    model, _ = load(folder, torch.bfloat16)
    ids = [0, *tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]]
    assert score(model, tokenizer, SAMPLES[:1]).bits[0] == pytest.approx(by_hand(model, ids, 1), rel=1e-5)


def test_nothing_to_score(model: Any, tokenizer: Any) -> None:
    tokenizer.bos_token = None
    with pytest.raises(DataError, match="none of 1 held-out texts"):
        score(model, tokenizer, [Sample(text="a")])


def test_a_tokenizer_without_offsets(model: Any) -> None:
    with pytest.raises(ModelError, match="no character offsets"):
        score(model, SimpleNamespace(is_fast=False), SAMPLES)


def test_out_of_memory_halves_the_batch(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, warnings = scoring._bits, []

    def small(model: Any, texts: Any) -> Any:
        if len(texts) * max(len(text.ids) for text in texts) > 100:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, texts)

    monkeypatch.setattr(scoring, "_bits", small)
    done: list[int] = []
    scores = score(model, tokenizer, SAMPLES, batch_size=8, warn=warnings.append, advance=done.append)
    assert warnings == ["out of memory: batch size is now 4", "out of memory: batch size is now 2"]
    assert sum(done) == len(SAMPLES)
    monkeypatch.undo()
    assert scores.bits == pytest.approx(score(model, tokenizer, SAMPLES).bits, rel=1e-5)


def test_one_text_that_does_not_fit(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: Any, texts: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(scoring, "_bits", full)
    with pytest.raises(MemoryShortage, match="one text"):
        score(model, tokenizer, SAMPLES)


def test_other_errors_pass(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, texts: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(scoring, "_bits", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        score(model, tokenizer, SAMPLES)


def test_interval_of_identical_scores_is_zero() -> None:
    a = Scores((1.0, 2.0, 3.0), (4, 5, 6))
    assert paired_interval(a, a) == (0, 0, 0)


def test_interval_of_a_known_shift() -> None:
    """Half a bit more on every byte is half a bit per byte, whatever the draw."""
    sizes = tuple(range(10, 40))
    b = Scores(tuple(2.0 * n for n in sizes), sizes)
    a = Scores(tuple(2.5 * n for n in sizes), sizes)
    assert paired_interval(a, b) == pytest.approx((0.5, 0.5, 0.5))


def test_interval_is_seeded_and_needs_the_same_texts() -> None:
    rng = np.random.default_rng(0)
    a, b = (Scores(tuple(rng.uniform(10, 20, 50)), (10,) * 50) for _ in range(2))
    assert paired_interval(a, b, seed=1) == paired_interval(a, b, seed=1) != paired_interval(a, b, seed=2)
    difference, low, high = paired_interval(a, b)
    assert low < difference < high
    with pytest.raises(ValueError, match="not of the same hold-out"):
        paired_interval(a, Scores((1.0,), (1,)))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """300 hold-outs of 80 texts, true difference 0.1: 95 % intervals miss about 15 times (binomial: 4 to 30)."""
    rng = np.random.default_rng(3)
    missed = 0
    for trial in range(300):
        sizes = rng.integers(20, 60, 80)
        common = rng.normal(2, 0.5, 80)
        b = Scores(tuple(common * sizes), tuple(map(int, sizes)))
        a = Scores(tuple((common + 0.1 + rng.normal(0, 0.2, 80)) * sizes), b.bytes)
        _, low, high = paired_interval(a, b, 400, trial)
        missed += not low <= 0.1 <= high
    assert 4 <= missed <= 30


def make_pair(tmp_path: Path, dtype: torch.dtype = torch.float32) -> Pair:
    target = make_model(tmp_path / "target", "qwen2", dtype=dtype)
    source = make_model(tmp_path / "source", "llama", layers=3, hidden=48, heads=6, seed=1)
    return Pair.make(tmp_path, target, source, torch.tensor([[0.3, 0.0, 0.2], [0.1, 0.4, 0.0]]))


@pytest.mark.parametrize("transported", [True, False])
def test_patched_changes_and_restores_bit_by_bit(tmp_path: Path, transported: bool) -> None:
    pair = make_pair(tmp_path)
    fusion = pair.fuse(PROJECTIONS, coupling="barycentric")
    update = FusedUpdate(fusion, pair.target, 0.7, "free", transported)
    model, _ = load(pair.target.folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="on purpose"), installed(model, update):
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {p.weight for p in pair.layouts.target.projections}
        raise RuntimeError("on purpose")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_measured_is_what_is_written(tmp_path: Path) -> None:
    """A bf16 target measured in fp32: patched weights are those of the folded file, rounding included."""
    pair = make_pair(tmp_path, torch.bfloat16)
    fusion = pair.fuse(PROJECTIONS, coupling="barycentric")
    update = FusedUpdate(fusion, pair.target, 0.3, "keep")
    folded = export(update, 0.3, tmp_path / "out", pair.run, pair.events.append)
    model, _ = load(pair.target.folder)
    written, _ = load(Path(folded.folder))
    with installed(model, update):
        theirs = model.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in written.state_dict().items())


def test_streamed_layers_are_patched_too(tmp_path: Path) -> None:
    """A model that does not fit its memory gives the scores of one that does."""
    pair = make_pair(tmp_path)
    for norm in ("free", "keep"):
        fusion = pair.fuse(PROJECTIONS, coupling="barycentric")
        whole, tokenizer = load(pair.target.folder)
        facts = read_facts(pair.target.folder, "target")
        size = facts.weight_bytes(torch.float32)
        streamed = load_model(facts, torch.device("cpu"), torch.float32, size - 1, pair.events.append)
        assert any(p.is_meta for p in streamed.parameters())
        plain = score(streamed, tokenizer, SAMPLES)
        update = FusedUpdate(fusion, pair.target, 0.5, norm)
        with installed(streamed, update), installed(whole, update):
            expected = score(whole, tokenizer, SAMPLES)
            assert score(streamed, tokenizer, SAMPLES).bits == pytest.approx(expected.bits, rel=1e-6)
        assert expected.bits != pytest.approx(plain.bits, rel=1e-4)
        assert score(streamed, tokenizer, SAMPLES) == plain


def subject(pair: Pair, role: str, loads: list[str]) -> LoadedModel:
    checkpoint = getattr(pair, role)

    def loading() -> Any:
        loads.append(role)
        return load(checkpoint.folder)[0]

    facts: Any = SimpleNamespace(fingerprint=checkpoint.fingerprint(), name=role)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    return LoadedModel(role, facts, tokenizer, loading, torch.device("cpu"), torch.float32)


def evaluator(pair: Pair, role: str, loads: list[str], **options: Any) -> Evaluator:
    model = subject(pair, role, loads)
    return Evaluator(model, Evaluation(**options), 512, 0, pair.run, pair.events.append)


def candidates(pair: Pair, *alphas: float, placebos: bool = True, **options: Any) -> list[Candidate]:
    """Fusions at some strengths, beside both placebos."""
    fusion, permuted = pair.fuse(**options), pair.fuse(permuted=True, **options)
    found = []
    for alpha in alphas:
        others = {
            "shrink": FusedUpdate(fusion, pair.target, alpha, "free", transported=False),
            "permuted": FusedUpdate(permuted, pair.target, alpha, "free"),
        }
        update = FusedUpdate(fusion, pair.target, alpha, "free")
        found.append(Candidate(alpha, update, others if placebos else {}, merge=None))  # type: ignore[arg-type]
    return found


def measured(pair: Pair, loads: list[str]) -> Measured:
    options = {"resamples": 100, "prompts": ["Two rivers"]}
    return evaluate(
        evaluator(pair, "target", loads, **options),
        lambda: evaluator(pair, "source", loads, **options),
        candidates(pair, 0.0, 0.5, coupling="barycentric"),
        SAMPLES,
        pair.events.append,
    )


def test_the_whole_table(tmp_path: Path) -> None:
    pair, loads = make_pair(tmp_path), []
    result = measured(pair, loads)
    assert loads == ["source", "target"]
    rows = {(row["model"], row["alpha"]): row for row in result.scores}
    assert list(rows) == [
        ("target", None),
        ("source", None),
        *((model, alpha) for alpha in (0.0, 0.5) for model in ("fused", "shrink", "permuted")),
    ]
    target = rows["target", None]
    assert (target["difference"], target["low"], target["high"]) == (None, None, None)
    model, tokenizer = load(pair.target.folder)
    assert target["bits_per_byte"] == score(model, tokenizer, SAMPLES).bits_per_byte
    assert (target["texts"], target["bytes"]) == (9, sum(len(text.encode()) for text in TEXTS))
    for name in ("fused", "shrink", "permuted"):
        same = rows[name, 0.0]
        assert same["bits_per_byte"] == target["bits_per_byte"]
        assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
        other = rows[name, 0.5]
        assert other["difference"] == pytest.approx(other["bits_per_byte"] - target["bits_per_byte"])
        assert other["low"] <= other["difference"] <= other["high"]
    assert len({rows[name, 0.5]["bits_per_byte"] for name in ("fused", "shrink", "permuted")}) == 3
    with installed(model, FusedUpdate(pair.fuse(coupling="barycentric"), pair.target, 0.5, "free")):
        assert rows["fused", 0.5]["bits_per_byte"] == score(model, tokenizer, SAMPLES).bits_per_byte
        text = continue_prompts(model, tokenizer, ["Two rivers"])[0]
    assert [(c["alpha"], c["against"]) for c in result.contrasts] == [
        (alpha, against) for alpha in (0.0, 0.5) for against in ("shrink", "permuted")
    ]
    contrast = result.contrasts[2]
    assert contrast["difference"] == pytest.approx(
        rows["fused", 0.5]["bits_per_byte"] - rows["shrink", 0.5]["bits_per_byte"]
    )
    assert [s["model"] for s in result.samples] == ["target", "fused", "fused"]
    assert result.samples[2] == {"model": "fused", "alpha": 0.5, "prompt": "Two rivers", "text": text}
    assert [e.text for e in pair.events if isinstance(e, Generated)][-1] == text
    metrics = [(e.model, e.alpha, e.value) for e in pair.events if isinstance(e, Metric)]
    assert metrics == [(row["model"], row["alpha"], row["bits_per_byte"]) for row in result.scores]
    progress = [e for e in pair.events if isinstance(e, StageProgressed) and e.stage == "evaluate"][-1]
    assert progress.done == progress.total == 8 * len(SAMPLES)


def test_a_second_run_loads_nothing_and_gives_the_same(tmp_path: Path) -> None:
    pair, loads = make_pair(tmp_path), []
    first = measured(pair, loads)
    loads.clear()
    assert measured(pair, loads) == first
    assert loads == []
    assert [e.outcome for e in pair.events if isinstance(e, StageFinished) and e.stage == "evaluate"][-1] == "cached"


def test_without_source_and_placebos(tmp_path: Path) -> None:
    pair, loads = make_pair(tmp_path), []
    target = evaluator(pair, "target", loads, resamples=100)
    result = evaluate(target, None, candidates(pair, 0.1, placebos=False), SAMPLES, pair.events.append)
    assert [row["model"] for row in result.scores] == ["target", "fused"]
    assert (result.contrasts, result.samples, loads) == ([], [], ["target"])
