"""Facts against the loaded model, refusals of what cannot be merged, and the estimate's order of magnitude."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.families import make_family
from tests.tiny import edit_config, make_model
from tmerge_tui.engine.preflight.estimate import estimate
from tmerge_tui.errors import ModelError
from tmerge_tui.models.facts import ModelFacts, read_facts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe, make_recipe


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama", max_shard_size="20KB", layers=3)


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "model")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_facts_are_those_of_the_loaded_model(tmp_path: Path, family: str, tied: bool) -> None:
    folder = make_model(tmp_path, family, layers=3, dtype=torch.bfloat16, tie_word_embeddings=tied)
    facts = read_facts(folder, "org/name")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.largest_layer_bytes == sum(p.numel() for p in model.model.layers[0].parameters()) * 2
    assert facts.weight_bytes(torch.float32) == facts.parameters * 4
    assert facts.bytes_on_disk == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert facts.architecture == type(model).__name__
    assert (facts.tied, facts.dtype, facts.torch_dtype) == (tied, "bfloat16", torch.bfloat16)
    assert (facts.name, facts.folder, facts.model_type) == ("org/name", folder, family)
    assert (facts.layers, facts.hidden, facts.heads, facts.kv_heads, facts.head_dim) == (3, 32, 4, 2, 8)
    assert facts.vocab == 320 and len(facts.layout.projections) == 21
    assert json.loads(json.dumps(facts.summary()))["parameters"] == facts.parameters


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n- gpl\n---\n", "mit, gpl"),
        ("---\nlicense: [broken\n---\n", None),
        ("---\ntags: [x]\n---\n", None),
        ("# No front matter", None),
        (None, None),
    ],
)
def test_licence(folder: Path, card: str | None, licence: str | None) -> None:
    if card is not None:
        (folder / "README.md").write_text(card)
    assert read_facts(folder, "m").licence == licence


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json", None])
def test_chat_template(folder: Path, where: str | None) -> None:
    if where == "tokenizer_config.json":
        (folder / where).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    elif where:
        (folder / where).write_text("{{ messages }}")
    assert read_facts(folder, "m").chat_template == (where is not None)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "mxfp4"])
def test_quantised(folder: Path, method: str) -> None:
    edit_config(folder, quantization_config={"quant_method": method})
    (folder / "README.md").write_text("---\nbase_model: org/plain\n---\n")
    with pytest.raises(ModelError, match=rf"m is quantised \({method}\)[\s\S]*it was made from: org/plain"):
        read_facts(folder, "m")


@pytest.mark.parametrize(("file", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_quantised_by_an_old_tool(folder: Path, file: str, method: str) -> None:
    (folder / file).write_text("{}")
    with pytest.raises(ModelError, match=rf"m is quantised \({method}\)[\s\S]*it was made from"):
        read_facts(folder, "m")


@pytest.mark.parametrize(
    ("family", "head_dim", "kv_heads"), [("falcon_40b", 8, 2), ("falcon_7b", 8, 1), ("qwen3", 16, 2), ("gpt2", 8, 4)]
)
def test_heads_are_read_from_the_shapes(tmp_path: Path, family: str, head_dim: int, kv_heads: int) -> None:
    facts = read_facts(make_family(tmp_path, family), "m")
    assert (facts.heads, facts.head_dim, facts.kv_heads) == (4, head_dim, kv_heads)


@pytest.mark.parametrize("family", ["rwkv", "bert", "mamba2"])
def test_layers_without_any_projection_are_listed(tmp_path: Path, family: str) -> None:
    known = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50, "num_heads": 4}
    known |= {"attention_hidden_size": 32, "head_dim": 16, "n_groups": 1, "intermediate_size": 64, "is_decoder": True}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **known)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no q, k, v, o, gate, up or down projection in any layer") as caught:
        read_facts(tmp_path, "m")
    assert "all layers: " in caught.value.found and "tmerge models" in caught.value.hint


def test_quantised_without_saying_so(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    from safetensors.torch import load_file, save_file

    weights = {k: v.to(torch.int8) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="int8 weights: it is quantised"):
        read_facts(folder, "m")


def test_encoder_decoder(tmp_path: Path) -> None:
    config = AutoConfig.for_model("t5", d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=50)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"encoder-decoder \(t5\)"):
        read_facts(tmp_path, "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, which writes no text"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPModel"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification, which writes no text"),
        ({"model_type": "new", "auto_map": {"AutoConfig": "x.Y"}}, "trust_remote_code: true"),
        ({"model_type": "unheard_of"}, "upgrade transformers"),
        ({"num_attention_heads": 5}, "number of attention heads"),
    ],
)
def test_other_models(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match=message):
        read_facts(folder, "m")


def test_state_space_model(tmp_path: Path) -> None:
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=2, vocab_size=50)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no attention \(mamba"):
        read_facts(tmp_path, "m")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_facts(folder, "m")


def test_missing_config_and_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_facts(folder, "m")
    with pytest.raises(ModelError, match="no model folder"):
        read_facts(folder / "nothing", "m")


def test_reading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_facts(folder, "m")
    assert capfd.readouterr() == ("", "")


# -- estimate ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair[ModelFacts]:
    other = make_model(tmp_path_factory.mktemp("source"), "qwen2", hidden=64, layers=5, heads=4, kv_heads=4)
    return Pair(target=read_facts(llama, "target"), source=read_facts(other, "source"))


def recipe(**changes: Any) -> Recipe:
    data: dict[str, Any] = {"source": "a/b", "target": "a/c", "calibration": {"path": "x.txt"}, "output": "out"}
    data["fusion"] = {"alpha": 0.1}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data = {**data, section: {**data.get(section, {}), name: value} if name else value}
    return make_recipe(data)


def test_estimate_of_hand_counted_shapes(pair: Pair[ModelFacts]) -> None:
    target, source = pair.target, pair.source
    found = estimate(recipe(calibration__samples=100, transport__projections=["q"]), Pair(target=target, source=source))
    T = 100
    activations = 4 * T * (3 * (32 + 32) + 5 * (64 + 64))  # q.in and q.out of every layer
    duals = 4 * (2 * 3 * 5) * (32 + 64)
    fused = 4 * 3 * 32 * 32  # k = 128 is capped at the 32 rows there are
    assert found.disk_bytes == activations + duals + fused + target.bytes_on_disk
    reading = 2 * T * 512 * (target.parameters + source.parameters)
    assert reading < found.flops < 40 * reading
    assert found.memory_bytes > max(target.parameters, source.parameters) * 4
    assert len(found.notes) == 4


@pytest.mark.parametrize(
    ("changes", "grows"),
    [
        ({"calibration__samples": 4000}, ("disk_bytes", "flops")),
        ({"calibration__max_length": 1024}, ("flops",)),
        ({"calibration__pooling": "span"}, ("disk_bytes", "flops")),
        ({"transport__projections": ["q", "k", "v", "o", "up"]}, ("disk_bytes", "flops")),
        ({"fusion__alpha": [0.1, 0.2]}, ("disk_bytes", "flops")),
        ({"calibration__batch_size": 64}, ("memory_bytes",)),
        ({"calibration__holdout": 800}, ("flops",)),
    ],
    ids=str,
)
def test_estimate_grows(pair: Pair[ModelFacts], changes: dict[str, Any], grows: tuple[str, ...]) -> None:
    before, after = estimate(recipe(), pair), estimate(recipe(**changes), pair)
    for figure in ("memory_bytes", "disk_bytes", "flops"):
        assert getattr(after, figure) >= getattr(before, figure)
        if figure in grows:
            assert getattr(after, figure) > getattr(before, figure)


def test_estimate_shrinks_with_less_memory_smaller_type_and_known_text(pair: Pair[ModelFacts]) -> None:
    full = estimate(recipe(), pair)
    assert estimate(recipe(memory="10KB"), pair).memory_bytes < full.memory_bytes
    assert estimate(recipe(dtype="bfloat16"), pair).memory_bytes < full.memory_bytes
    for pooling in ("sample", "span"):
        limit = estimate(recipe(calibration__pooling=pooling), pair)
        known = estimate(recipe(calibration__pooling=pooling), pair, (50, 300))
        assert known.disk_bytes < limit.disk_bytes and known.flops < limit.flops


def test_estimate_of_the_papers_pair() -> None:
    """Shapes of Llama-3.1-8B into Llama-3.2-1B, against figures counted by hand in the documentation of the method."""
    shapes = {"vocab_size": 128256, "head_dim": 128, "num_key_value_heads": 8}
    big = _facts(
        "llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **shapes
    )
    shapes["head_dim"] = 64
    small = _facts(
        "llama",
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        **shapes,
        tie_word_embeddings=True,
    )
    assert big.parameters == pytest.approx(8.03e9, rel=0.01) and small.parameters == pytest.approx(1.236e9, rel=0.01)
    found = estimate(recipe(dtype="bfloat16", calibration__samples=2000), Pair(target=small, source=big))
    assert 1.6e16 < found.flops < 5e16  # 2000 x 512 tokens through 8B alone are 1.6e16
    assert 16e9 < found.memory_bytes < 30e9  # 8B in bfloat16 is 16 GB
    activations = 2000 * 4 * (16 * (4 * 2048 + 2 * 512) + 32 * (4 * 4096 + 2 * 1024))
    assert found.disk_bytes == pytest.approx(activations + small.bytes_on_disk, rel=0.05)


def _facts(family: str, **config: Any) -> ModelFacts:
    from tmerge_tui.models.projections import decoder_layers, find_projections

    known = AutoConfig.for_model(family, **config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(known)
    layout = find_projections(model, known, {name for name, _ in model.named_parameters()})
    count = sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for p in decoder_layers(model, layout.layers)[1][0].parameters())
    return ModelFacts(
        name=family,
        folder=Path(),
        model_type=family,
        architecture="",
        layers=layout.layers,
        hidden=known.hidden_size,
        heads=32,
        kv_heads=8,
        head_dim=known.head_dim,
        vocab=128256,
        parameters=count,
        dtype="bfloat16",
        bytes_on_disk=2 * count,
        largest_layer_bytes=2 * layer,
        tied=False,
        chat_template=False,
        licence=None,
        fingerprint="",
        trust_remote_code=False,
        layout=layout,
    )


def test_training_needs_room_for_gradients_moments_and_every_trained_model(tmp_path: Path) -> None:
    facts = read_facts(make_model(tmp_path / "m"), "m")
    same = Pair(target=facts, source=facts)
    off = estimate(recipe(), same)
    on = {
        seeds: estimate(recipe(adaptation__seeds=list(range(seeds)), adaptation__compare=["sft"]), same)
        for seeds in (1, 3)
    }
    assert on[3].disk_bytes - on[1].disk_bytes == 4 * facts.parameters * 4  # two methods, two more seeds
    assert on[1].disk_bytes > off.disk_bytes + facts.bytes_on_disk
    hinted = estimate(recipe(adaptation__hints={}), same)
    assert hinted.disk_bytes > estimate(recipe(adaptation__seeds=[0]), same).disk_bytes
    huge = estimate(recipe(adaptation__block_length=10**6), same)
    assert huge.memory_bytes >= 12 * 10**6 * facts.vocab
