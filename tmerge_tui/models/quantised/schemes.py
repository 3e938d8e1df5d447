"""The ways of packing that are read here, by the name that config.json gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tmerge_tui.models.config import quantisation
from tmerge_tui.models.quantised.awq import Awq
from tmerge_tui.models.quantised.bitsandbytes import BitsAndBytes
from tmerge_tui.models.quantised.compressed_tensors import CompressedTensors
from tmerge_tui.models.quantised.fp8 import Fp8
from tmerge_tui.models.quantised.gptq import Gptq
from tmerge_tui.models.quantised.scheme import Scheme, Settings

SCHEMES: dict[str, Callable[[Settings], Scheme]] = {
    "fp8": Fp8,
    "fbgemm_fp8": Fp8,
    "compressed-tensors": CompressedTensors,
    "gptq": Gptq,
    "awq": Awq,
    "bitsandbytes": BitsAndBytes,
}


def scheme_of(folder: Path) -> Scheme | None:
    """How the weights of a model folder are packed; None when they are not, or in no way that is read here."""
    found = quantisation(folder)
    make = SCHEMES.get(str(found.get("quant_method"))) if found else None
    return None if make is None or found is None else make(found)
