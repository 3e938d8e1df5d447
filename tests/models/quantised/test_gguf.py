"""A GGUF file read as the model it was made from. References: that model's own outputs, and transformers' readers of
packed blocks, which are another implementation than gguf's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.gguf_files import MADE_UP, write_gguf
from tests.tiny import LINES, make_model, make_tokenizer
from tmerge_tui.errors import ModelError
from tmerge_tui.models.quantised.gguf_config import frequency_scaling
from tmerge_tui.models.quantised.gguf_file import local_parts, open_gguf
from tmerge_tui.models.quantised.gguf_model import GgufModel

IDS = torch.arange(3, 43)[None]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}


def unpack(file: Path, out: Path) -> Path:
    model = GgufModel(local_parts(file), file.name)
    out.mkdir()
    model.write_head(out)
    tensors: dict[str, torch.Tensor] = {}
    for group in model.groups(out):
        tensors |= model.make(out, group)
    model.check(out, list(tensors))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def outputs(folder: Path) -> torch.Tensor:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        return model(IDS).logits


def same_model(
    tmp_path: Path, family: str, architecture: str, metadata: Any = None, more: Any = None, **shape: Any
) -> Path:
    """A file in full precision gives the model's own outputs; the folder it was unpacked to."""
    given = {"hidden": 64, "intermediate": 96, "pad_token_id": 0, **shape}
    folder = make_model(tmp_path / "plain", family, **given)
    with torch.no_grad():  # norms and biases that are not what they begin as
        for file in folder.glob("*.safetensors"):
            tensors = {k: v + 0.1 * torch.rand_like(v) if v.dim() == 1 else v for k, v in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
    file = write_gguf(folder, tmp_path / "tiny.gguf", "F32", architecture, metadata=metadata, more=more)
    out = unpack(file, tmp_path / "out")
    torch.testing.assert_close(outputs(out), outputs(folder), rtol=1e-4, atol=1e-4)
    return out


FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "llama", {}),
    ("llama", "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", "llama", {"head_dim": 32, "tie_word_embeddings": False}),
    ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    ("qwen3", "qwen3", {"head_dim": 32}),
    ("gemma2", "gemma2", {"head_dim": 32, "query_pre_attn_scalar": 256, "sliding_window": 16}),
    ("gemma3_text", "gemma3", {"head_dim": 32, "query_pre_attn_scalar": 256, "sliding_window": 16, "layers": 7}),
    ("phi3", "phi3", {"partial_rotary_factor": 0.5, "sliding_window": 16}),
    ("starcoder2", "starcoder2", {"rope_theta": 77777.0, "sliding_window": 16}),
]


@pytest.mark.parametrize(("family", "architecture", "shape"), FAMILIES)
def test_outputs_are_those_of_the_model(tmp_path: Path, family: str, architecture: str, shape: dict[str, Any]) -> None:
    same_model(tmp_path, family, architecture, **shape)


def test_an_architecture_that_transformers_reads_by_its_newer_way(tmp_path: Path) -> None:
    shape = {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}
    out = same_model(tmp_path, "lfm2", "lfm2", **shape)
    assert AutoConfig.from_pretrained(out).model_type == "lfm2"


def factors_of(rope: dict[str, Any], width: int) -> np.ndarray:
    """What Llama 3.1's frequencies are divided by, from transformers itself."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model("llama", head_dim=width, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = rope["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    return (plain / scaled).numpy()


def test_the_frequencies_of_llama_3_1_are_not_lost(tmp_path: Path) -> None:
    more = {"rope_freqs.weight": factors_of(LLAMA3, 16)}
    out = same_model(tmp_path, "llama", "llama", more=more, rope_parameters=LLAMA3)
    rope = AutoConfig.from_pretrained(out).rope_parameters
    assert {key: rope[key] for key in LLAMA3} == LLAMA3


def test_other_frequencies_are_kept_as_they_are(tmp_path: Path) -> None:
    factors = [1.0, 1.5, 2.0, 4.0, 4.5, 5.0, 5.0, 9.0]
    made = frequency_scaling(factors, 10000.0, 4096)
    assert made["rope_type"] == "longrope" and made["long_factor"] == made["short_factor"] == factors
    more = {"rope_freqs.weight": np.array(factors)}
    rope = {**made, "rope_theta": 10000.0, "original_max_position_embeddings": 256}
    same_model(tmp_path, "llama", "llama", more=more, rope_parameters=rope)


def test_long_contexts_are_scaled_as_the_file_says(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    said = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    same_model(tmp_path, "qwen2", "qwen2", metadata=said, rope_parameters=yarn)


def test_gemma_27b_divides_scores_otherwise(tmp_path: Path) -> None:
    shape = {"layers": 46, "head_dim": 32, "query_pre_attn_scalar": 16, "sliding_window": 16}
    same_model(tmp_path, "gemma2", "gemma2", **shape)


@pytest.mark.parametrize("kind", list(MADE_UP))
def test_blocks_of_k_types(tmp_path: Path, kind: str) -> None:
    """Every matrix as another implementation unpacks the same bytes."""
    from transformers.integrations.gguf.dequant import dequantize

    folder = make_model(tmp_path / "plain", "qwen2", hidden=256, intermediate=256)
    file = write_gguf(folder, tmp_path / "tiny.gguf", kind, "qwen2")
    model, head = GgufModel(local_parts(file), "tiny"), tmp_path / "out"
    head.mkdir()
    model.write_head(head)
    assert model.precision.startswith(f"GGUF {kind}, ") and model.dtype == torch.bfloat16 and model.rounded
    read = {key: value for group in model.groups(head) for key, value in model.make(head, group).items()}
    seen = 0
    for tensor in gguf.GGUFReader(str(file)).tensors:
        if tensor.tensor_type.name != kind or "ffn_" not in tensor.name:
            continue
        _, layer, part, _ = tensor.name.split(".")
        name = f"model.layers.{layer}.mlp.{part.removeprefix('ffn_')}_proj.weight"
        reference = dequantize(torch.from_numpy(np.array(tensor.data)), int(tensor.tensor_type))
        torch.testing.assert_close(read[name].float(), reference.reshape(read[name].shape), rtol=5e-3, atol=1e-6)
        seen += 1
    assert seen == 6


def test_a_weight_that_is_not_there_is_an_error_and_never_random(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "plain", hidden=64, intermediate=96)
    file = write_gguf(folder, tmp_path / "tiny.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(
        ModelError, match=r"1 weights of a llama are not in the file, first model\.layers\.1\.mlp\.up_proj"
    ):
        unpack(file, tmp_path / "out")


def test_a_weight_without_a_place_is_an_error(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "plain", hidden=64, intermediate=96)
    file = write_gguf(folder, tmp_path / "tiny.gguf", more={"blk.0.attn_sub_norm.weight": np.ones(64)})
    with pytest.raises(ModelError, match=r"blk\.0\.attn_sub_norm\.weight has no place"):
        unpack(file, tmp_path / "out")


def test_a_file_that_is_cut(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "plain", hidden=64, intermediate=96)
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    for kept, said in ((len(whole) - 200, "it is cut"), (900, "it is cut or damaged"), (100, "it is cut or damaged")):
        file.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=said):
            open_gguf(local_parts(file))


def test_several_files_are_one_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "plain", hidden=64, intermediate=96, tie_word_embeddings=False)
    write_gguf(folder, tmp_path / "tiny.gguf", "F32", split=9)
    files = sorted(tmp_path.glob("tiny-*.gguf"))
    assert [file.name for file in files] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    torch.testing.assert_close(outputs(unpack(files[0], tmp_path / "out")), outputs(folder), rtol=1e-4, atol=1e-4)
    files[1].unlink()
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf is not beside it[\s\S]*llama-gguf-split --merge"):
        local_parts(files[0])


TEXTS = [*LINES[:6], "  two  blanks\n\tand a tab", "numbers 12345, 6.78", "Größe 你好 😀", "<|end|>x<|end|>", ""]


def test_the_tokenizer_reads_text_as_the_models_own(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "plain", hidden=64, intermediate=96)
    template = {"tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"}
    out = unpack(write_gguf(folder, tmp_path / "tiny.gguf", metadata=template), tmp_path / "out")
    read, own = AutoTokenizer.from_pretrained(out), make_tokenizer(320)
    for text in TEXTS:
        assert read(text).input_ids == own(text).input_ids, text
        assert read.decode(read(text).input_ids) == own.decode(own(text).input_ids)
    assert (read.eos_token_id, read.bos_token_id) == (0, 0)
    assert read.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<|end|>"


def test_a_sentencepiece_tokenizer_reads_text_as_the_models_own(tmp_path: Path) -> None:
    import sentencepiece
    from transformers import LlamaTokenizer

    (tmp_path / "text").write_text("\n".join(LINES))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=340, model_type="bpe", minloglevel=9,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False,
    )  # fmt: skip
    own = LlamaTokenizer.from_pretrained(_spm_folder(tmp_path), add_bos_token=True)  # as llama.cpp has it
    folder = make_model(tmp_path / "plain", hidden=64, intermediate=96, vocab=len(own))
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    _with_sentencepiece(file, tmp_path / "m.model", folder)
    read = AutoTokenizer.from_pretrained(unpack(file, tmp_path / "out"))
    for text in (text for text in TEXTS if text):
        assert read(text).input_ids == own(text).input_ids, text


def _spm_folder(tmp_path: Path) -> Path:
    (tmp_path / "spm").mkdir()
    (tmp_path / "m.model").rename(tmp_path / "spm" / "tokenizer.model")
    (tmp_path / "m.model").write_bytes((tmp_path / "spm" / "tokenizer.model").read_bytes())
    return tmp_path / "spm"


def _with_sentencepiece(file: Path, model: Path, folder: Path) -> None:
    """Rewrites a file with a sentencepiece vocabulary instead of its own."""
    import sentencepiece

    import tests.gguf_files as files

    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(model))
    count = range(vocabulary.vocab_size())

    def add(writer: gguf.GGUFWriter, _: Path) -> None:
        kinds = [
            2 if vocabulary.is_unknown(i) else 3 if vocabulary.is_control(i) else 6 if vocabulary.is_byte(i) else 1
            for i in count
        ]
        writer.add_tokenizer_model("llama")
        writer.add_token_list([vocabulary.id_to_piece(i) for i in count])
        writer.add_token_scores([vocabulary.get_score(i) for i in count])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "add_tokenizer", add)
        write_gguf(folder, file)


def test_bits_are_those_of_all_tensors(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "plain", hidden=64, intermediate=96)
    found = open_gguf(local_parts(write_gguf(folder, tmp_path / "tiny.gguf", "Q8_0")))
    flat = sum(math.prod(t.shape) for t in found.tensors.values() if len(t.shape) == 1)
    matrices = sum(math.prod(t.shape) for t in found.tensors.values() if len(t.shape) == 2)
    assert found.bits == pytest.approx((32 * flat + 8.5 * matrices) / (flat + matrices))
    assert found.kinds == ("Q8_0",) and found.architecture == "llama"
