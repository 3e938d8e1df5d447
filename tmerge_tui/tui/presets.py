"""The tasks of the paper as starting points for the Models and Data screens (its table of models, data and alpha)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    name: str
    target: str  # Hub id
    source: str  # Hub id
    alpha: float  # fusion strength the paper uses
    data: str  # Hub data set

    def values(self) -> dict[str, Any]:
        """What the preset says about data and method, in the draft's names."""
        return {"calibration.repo_id": self.data, "fusion.alpha": str(self.alpha)}


LLAMA_8B = "unsloth/Llama-3.1-8B-Instruct"
LLAMA_1B = "unsloth/Llama-3.2-1B-Instruct"

PRESETS = (
    Preset("Malay", "mesolitica/Malaysian-Llama-3.2-1B-Instruct", LLAMA_8B, 0.1, "mesolitica/Malaysian-SFT"),
    Preset("Thai", "scb10x/llama3.2-typhoon2-1b-instruct", LLAMA_8B, 0.01, "ChavyvAkvar/fineweb-2-1M-Sample-Thai"),
    Preset("Cantonese", LLAMA_1B, "FlagAlpha/Llama3-Chinese-8B-Instruct", 0.01, "stvlynn/Cantonese-Dialogue"),
    Preset("Finance", LLAMA_1B, LLAMA_8B, 0.03, "Josephgflowers/Finance-Instruct-500k"),
    Preset(
        "Medical",
        "PathFinderKR/Llama-3-1B-Medical-Instruct",
        LLAMA_8B,
        0.03,
        "Shekswess/medical_llama3_instruct_dataset",
    ),
)
