"""Packed weights become what their formats say, in numbers that were worked out by hand."""

from __future__ import annotations

import json

import pytest
import torch

from tmerge_tui.models.quantised.awq import Awq
from tmerge_tui.models.quantised.bits import unpacked
from tmerge_tui.models.quantised.bitsandbytes import BitsAndBytes
from tmerge_tui.models.quantised.compressed_tensors import CompressedTensors
from tmerge_tui.models.quantised.fp8 import Fp8, scaled
from tmerge_tui.models.quantised.gptq import Gptq
from tmerge_tui.models.quantised.scheme import weight_of

UP = 0x76543210  # 0, 1, ..., 7 from the lowest four bits
DOWN = 0x01234567


def ints(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([[v - 2**32 if v >= 2**31 else v for v in row] for row in rows], dtype=torch.int32)


def test_integers_along_either_axis() -> None:
    assert unpacked(ints([UP, 0xFEDCBA98]), 4, 1).tolist() == [list(range(16))]
    assert unpacked(ints([UP, 0xFEDCBA98]), 4, 0).T.tolist() == [list(range(8)), list(range(8, 16))]
    assert unpacked(ints([0xFF00807F]), 8, 1).tolist() == [[127, 128, 0, 255]]
    assert unpacked(ints([0xE4E4E4E4]), 2, 1).tolist() == [[0, 1, 2, 3] * 4]
    with pytest.raises(ValueError, match="3 bits a weight: 2, 4 or 8 are read"):
        unpacked(ints([UP]), 3, 1)
    with pytest.raises(ValueError, match="packed into int64"):
        unpacked(ints([UP]).long(), 4, 1)


def test_gptq() -> None:
    """Eight inputs in two groups of four; outputs of zeros 3 and 5 (stored less one), scales 1, 2 and 10, 20."""
    parts = {
        "qweight": ints([UP, DOWN]),
        "qzeros": ints([0x42], [0x42]),
        "scales": torch.tensor([[1.0, 2.0], [10.0, 20.0]]).half(),
    }
    made = Gptq({"bits": 4, "group_size": 4}).plain(parts)
    assert made.tolist() == [[-3, -2, -1, 0, 10, 20, 30, 40], [4, 2, 0, -2, -40, -60, -80, -100]]
    order = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1], dtype=torch.int32)
    moved = Gptq({"bits": 4, "group_size": 4}).plain({**parts, "g_idx": order})
    assert moved[0].tolist() == [-30, -2, -1, 0, 1, 20, 30, 40]
    second = Gptq({"bits": 4, "group_size": 4, "checkpoint_format": "gptq_v2"}).plain(parts)
    assert second[0].tolist() == [-2, -1, 0, 1, 20, 30, 40, 50]
    with pytest.raises(ValueError, match="its checkpoint format is marlin"):
        Gptq({"bits": 4, "checkpoint_format": "marlin"}).check()


def test_gptqs_zero_of_nothing_is_stored_as_the_largest() -> None:
    parts = {"qweight": ints([UP]), "qzeros": ints([0xF]), "scales": torch.ones(1, 1)}
    assert Gptq({"bits": 4}).plain(parts).tolist() == [list(range(8))]


def test_awq() -> None:
    """Two inputs, eight outputs: the lowest four bits are output 0, the next ones output 2."""
    parts = {
        "qweight": ints([UP], [0x11111111]),
        "qzeros": ints([0x00000010]),
        "scales": torch.arange(1.0, 9.0)[None].half(),
    }
    made = Awq({"bits": 4, "group_size": 2}).plain(parts)
    zeros = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0])
    held = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    scales = torch.arange(1, 9)
    assert made.tolist() == torch.stack([scales * (held - zeros), scales * (1 - zeros)], 1).tolist()
    with pytest.raises(ValueError, match="its layout is gemv"):
        Awq({"bits": 4, "version": "gemv"}).check()


def test_bitsandbytes_eight_bits() -> None:
    parts = {"weight": torch.tensor([[127, -127], [0, 1]], dtype=torch.int8), "SCB": torch.tensor([2.0, 254.0])}
    assert BitsAndBytes({"load_in_8bit": True}).plain(parts).tolist() == [[2, -2], [0, 2]]


def test_bitsandbytes_four_bits() -> None:
    """0x1F: value 1 of the table, then value 15; blocks of two; scales through a table of their own."""
    table = torch.arange(16.0) / 4

    def state(**more: object) -> torch.Tensor:
        return torch.tensor(list(json.dumps({"blocksize": 2, "shape": [2, 2], **more}).encode()), dtype=torch.uint8)

    parts = {
        "weight": torch.tensor([[0x1F], [0x40]], dtype=torch.uint8),
        "weight.absmax": torch.tensor([2.0, 10.0]),
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": state(),
    }
    scheme = BitsAndBytes({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    assert scheme.plain(parts).tolist() == [[0.5, 7.5], [10, 0]]
    stored_as = {**parts, "weight": parts["weight"].flatten().view(torch.bfloat16)}
    assert scheme.plain(stored_as).tolist() == [[0.5, 7.5], [10, 0]]
    nested = {
        **parts,
        "weight.absmax": torch.tensor([0, 1], dtype=torch.uint8),
        "weight.nested_absmax": torch.tensor([4.0]),
        "weight.nested_quant_map": torch.tensor([0.0, 0.5]),
        "weight.quant_state.bitsandbytes__nf4": state(nested_blocksize=256, nested_offset=1.0),
    }
    assert scheme.plain(nested).tolist() == [[0.25, 3.75], [3, 0]]


def test_scales_of_everything_rows_groups_and_blocks() -> None:
    ones = torch.ones(3, 4)
    assert scaled(ones, torch.tensor(2.0)).unique().tolist() == [2]
    assert scaled(ones, torch.tensor([1.0, 2.0, 3.0]))[:, 0].tolist() == [1, 2, 3]
    assert scaled(ones, torch.tensor([[1.0, 2.0]] * 3))[0].tolist() == [1, 1, 2, 2]
    blocks = scaled(ones, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (2, 3))
    assert blocks.tolist() == [[1, 1, 1, 2], [1, 1, 1, 2], [3, 3, 3, 4]]
    assert scaled(ones, torch.tensor([[128], [127], [126]], dtype=torch.uint8))[:, 0].tolist() == [2, 1, 0.5]
    with pytest.raises(ValueError, match="do not fit a matrix of 3 x 4"):
        scaled(ones, torch.ones(2, 3))


def test_an_fp8_matrix_without_its_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="no scale"):
        Fp8({}).plain({"weight": torch.ones(2, 2).to(torch.float8_e4m3fn)})


def test_compressed_tensors_pack_integers_around_zero() -> None:
    settings = {"format": "pack-quantized", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}}
    scheme = CompressedTensors(settings)
    parts = {
        "weight_packed": ints([UP], [DOWN]),
        "weight_shape": torch.tensor([2, 6]),
        "weight_scale": torch.tensor([[1.0, 10.0], [1.0, 1.0]]),
    }
    assert scheme.plain(parts).tolist() == [[-8, -7, -6, -50, -40, -30], [-1, -2, -3, -4, -5, -6]]
    zeros = ints([0x98, 0x08])  # of two rows in one integer: 8 (nothing) and 9, then 8 and 0
    made = scheme.plain({**parts, "weight_zero_point": zeros})
    assert made.tolist() == [[-8, -7, -6, -50, -40, -30], [-2, -3, -4, 4, 3, 2]]
    with pytest.raises(ValueError, match="nvfp4-pack-quantized"):
        CompressedTensors({**settings, "format": "nvfp4-pack-quantized"}).check()


def test_which_stored_tensors_are_one_weight() -> None:
    scheme = BitsAndBytes({})
    for name in ("x.weight", "x.weight.absmax", "x.weight.quant_state.bitsandbytes__nf4", "x.SCB"):
        assert (weight_of(name, scheme) or ("",))[0] == "x.weight"
    assert weight_of("x.bias", scheme) == ("x.bias", "weight") and weight_of("x.weight_format", scheme) is None
