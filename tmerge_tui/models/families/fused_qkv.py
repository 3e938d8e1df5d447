"""q, k and v in one tensor: which of its rows are whose.

Every known layout is some number of equal groups one after the other, each with its share of the q heads, of the k
heads and of the v heads. Head counts come from shapes; how many groups there are does not show in them, so the table
says it for each model type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tmerge_tui.models.layout import Block


@dataclass(frozen=True)
class FusedQKV:
    model_types: tuple[str, ...]
    groups: int | Literal["kv"]  # "kv": one for each key-value head
    order: str = "qkv"  # within a group


TABLE = (
    # all q, then all k, then all v
    FusedQKV(("gpt2", "openai-gpt", "phi3", "mpt"), groups=1),
    # head by head; with shared keys and values: their query heads, then they. One such group is the same as above.
    FusedQKV(("gpt_neox", "bloom", "falcon", "persimmon", "gpt_bigcode"), groups="kv"),
    # as split over four TPU cores
    FusedQKV(("codegen",), groups=4, order="qvk"),
)


def split_qkv(model_type: str, rows: int, heads: int, o_in: int) -> dict[str, Block] | str:
    """The neurons of q, k and v among `rows`; or why they cannot be told.

    `o_in` is what enters the output projection, head_dim of every head.
    """
    entry = next((entry for entry in TABLE if model_type in entry.model_types), None)
    if entry is None:
        return f"the order of q, k and v in a {model_type} is not known"
    head_dim, odd = divmod(o_in, heads)
    shared = (rows - o_in) // 2  # rows of k, and of v
    kv = shared // head_dim
    groups = kv if entry.groups == "kv" else entry.groups
    if odd or shared <= 0 or o_in + 2 * kv * head_dim != rows or heads % kv or heads % groups or kv % groups:
        return f"{rows} rows are no q, k, v of {heads} heads with {o_in} channels"
    lengths = {"q": o_in // groups, "k": shared // groups, "v": shared // groups}
    found, start = {}, 0
    for kind in entry.order:
        found[kind] = Block(start, lengths[kind], rows // groups, groups)
        start += lengths[kind]
    return found
