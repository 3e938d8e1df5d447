"""gate and up in one tensor: gate's rows first, in every family that calls it `gate_up_proj` (Phi-3, GLM-4)."""

from __future__ import annotations

from tmerge_tui.models.layout import Block


def split_gate_up(rows: int, down_in: int) -> dict[str, Block] | str:
    """The neurons of gate and of up among `rows`; or why they cannot be told. `down_in` is what enters down."""
    if rows != 2 * down_in:
        return f"{rows} rows are no gate and up of {down_in} each"
    return {"gate": Block(0, down_in), "up": Block(down_in, down_in)}
