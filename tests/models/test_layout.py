"""Blocks and fused tensors by themselves. Reference: index arithmetic written out, and partitions of all rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tmerge_tui.models.families.fused_gate_up import split_gate_up
from tmerge_tui.models.families.fused_qkv import TABLE, split_qkv
from tmerge_tui.models.layout import Block, Projection


@pytest.mark.parametrize(
    ("block", "index", "text"),
    [
        (Block(3, 4), [3, 4, 5, 6], "3-6"),
        (Block(2, 2, 6, 2), [2, 3, 8, 9], "2-3, 8-9"),
        (Block(0, 1, 3, 4), [0, 3, 6, 9], "0-0, 3-3, ... (4 runs)"),
    ],
)
def test_block(block: Block, index: list[int], text: str) -> None:
    assert block.index().tolist() == index and block.size == len(index) and str(block) == text


@given(
    st.sampled_from([model_type for entry in TABLE for model_type in entry.model_types]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_q_k_and_v_are_all_rows_once(model_type: str, kv: int, share: int, head_dim: int) -> None:
    if model_type == "codegen":
        kv, share = 4 * kv, 1
    heads = kv * share
    o_in, rows = heads * head_dim, (heads + 2 * kv) * head_dim
    blocks = split_qkv(model_type, rows, heads, o_in)
    assert isinstance(blocks, dict)
    assert [blocks[kind].size for kind in "qkv"] == [o_in, kv * head_dim, kv * head_dim]
    assert sorted(i for block in blocks.values() for i in block.index().tolist()) == list(range(rows))


@pytest.mark.parametrize(
    ("model_type", "rows", "heads", "o_in", "why"),
    [
        ("unheard_of", 96, 4, 32, "the order of q, k and v in a unheard_of is not known"),
        ("phi3", 95, 4, 32, "95 rows are no q, k, v"),
        ("phi3", 32, 4, 32, "32 rows are no q, k, v"),
        ("phi3", 36, 4, 32, "36 rows are no q, k, v"),
        ("gpt_neox", 80, 4, 32, "80 rows are no q, k, v"),  # three key-value heads for four
        ("gpt_neox", 96, 5, 32, "96 rows are no q, k, v"),
        ("codegen", 96, 2, 32, "96 rows are no q, k, v"),  # two heads over four cores
    ],
)
def test_rows_that_are_no_q_k_v(model_type: str, rows: int, heads: int, o_in: int, why: str) -> None:
    found = split_qkv(model_type, rows, heads, o_in)
    assert isinstance(found, str) and found.startswith(why)


def test_gate_before_up() -> None:
    assert split_gate_up(6, 3) == {"gate": Block(0, 3), "up": Block(3, 3)}
    assert split_gate_up(7, 3) == "7 rows are no gate and up of 3 each"


def projection(kind: str, block: Block | None, transposed: bool) -> Projection:
    return Projection(0, kind, "m", "m.weight", "m.bias", 4, 3, block, transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [None, Block(4, 4), Block(2, 2, 6, 2)])
def test_rows_are_located_in_the_stored_tensor(block: Block | None, transposed: bool) -> None:
    stored = torch.arange(36.0).view(12, 3) if block else torch.arange(12.0).view(4, 3)
    stored = stored.T.contiguous() if transposed else stored
    p, index = projection("q", block, transposed), torch.tensor([2, 0])
    dim, places = p.locate("rows", index)
    rows = p.take(stored)[index]
    assert torch.equal(stored.index_select(dim, places), rows.T if transposed else rows)
    bias = torch.arange(12.0) if block else torch.arange(4.0)
    assert torch.equal(bias[places], p.take(bias)[index])
    activations = torch.randn(2, 5, len(bias))
    assert torch.equal(p.output(activations), activations[..., block.index()] if block else activations)


@pytest.mark.parametrize("transposed", [False, True])
def test_columns_are_located_unless_they_would_be_others_too(transposed: bool) -> None:
    stored = torch.arange(12.0).view(3, 4) if transposed else torch.arange(12.0).view(4, 3)
    p, index = projection("o", None, transposed), torch.tensor([1])
    dim, places = p.locate("columns", index)
    assert torch.equal(stored.index_select(dim, places).flatten(), p.take(stored)[:, 1])
    with pytest.raises(AssertionError, match="holds several projections"):
        projection("o", Block(0, 4), transposed).locate("columns", index)
