"""Where a recipe may start from: the three cards of the wizard's Method and `tmerge init --start`.

A start says a few options by their dotted names; everything else keeps its default, which is the paper's. Taking one
takes the options of the others back (`settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Start:
    name: str
    title: str
    about: str  # one sentence without its full stop
    says: Mapping[str, Any] = field(default_factory=dict)


BEST: Mapping[str, Any] = {
    "fusion.coupling": "barycentric",
    "adaptation.teacher.tune": "auto",
    "adaptation.compare": ["sft", "distill"],
    "adaptation.controls": ["other_text"],
    "adaptation.learning_rate": "auto",
    "adaptation.distill_weight": "auto",
    "adaptation.epochs": 4.0,
    "adaptation.patience": 2,
    "adaptation.packing": "pad",
    "adaptation.batch_size": 8,
    "adaptation.accumulation": 1,
    "select": "validation",
}
EVERYTHING: Mapping[str, Any] = {
    **BEST,
    "adaptation.controls": ["other_text", "permuted", "unigram", "self", "untuned"],
    "adaptation.hints.with_distill": True,
    "adaptation.seeds": [0, 1, 2],
}
STARTS = (
    Start(
        "best",
        "Best small model",
        "distil and fuse: the source learns your text, then teaches; what is best on validation text becomes model/",
        BEST,
    ),
    Start(
        "paper",
        "The paper's method",
        "transport and fuse, every default unchanged; nothing is trained, and alpha is chosen on validation text",
    ),
    Start(
        "everything",
        "Compare everything",
        "every arm beside its placebos, three seeds of each: what each part is worth, for a report",
        EVERYTHING,
    ),
)
RECOMMENDED = "best"
OWNED = tuple(dict.fromkeys(name for start in STARTS for name in start.says))  # what any of them says


NAMES = {start.name: start for start in STARTS}


def settings(name: str) -> dict[str, Any]:
    """What choosing a start sets: an option that another start says and this one does not is None, its default."""
    return {**dict.fromkeys(OWNED), **NAMES[name].says}
