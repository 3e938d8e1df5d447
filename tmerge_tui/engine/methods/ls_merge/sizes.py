"""How large chunks and autoencoder are where the recipe says `auto`, by the parameters of the target."""

from __future__ import annotations

from tmerge_tui.engine.methods.ls_merge.vae import Shape
from tmerge_tui.recipe import LsMerge

SIZES = ((5_000_000, 64, 128), (200_000_000, 144, 256))  # parameters below which: chunk, width
LARGEST = (640, 768)


def chunk_of(options: LsMerge, parameters: int) -> int:
    """Numbers of a chunk, the same for both models."""
    return _auto(parameters)[0] if options.chunk == "auto" else options.chunk


def shape_of(options: LsMerge, parameters: int, kinds: int) -> Shape:
    c = chunk_of(options, parameters)
    width = _auto(parameters)[1] if options.width == "auto" else options.width
    return Shape(c, max(1, round(c / options.ratio)), width, options.blocks, kinds)


def _auto(parameters: int) -> tuple[int, int]:
    return next(((c, width) for most, c, width in SIZES if parameters < most), LARGEST)
