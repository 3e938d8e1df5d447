"""What pieces are called. Reference: keys recorded before they were built from what each option says it affects; a run
folder of an earlier version is taken up only while they stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.optimal_transport.problems import make_activations
from tmerge_tui.engine.methods.transport_merge.feature_plans import Transports
from tmerge_tui.engine.training.arms import NOT_IN_LOSS
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.run_folder import RunDir, key

RECORDED = json.loads((Path(__file__).parent / "golden" / "keys.json").read_text())


def unused(layer: int, side: str) -> Tensor:
    return torch.empty(0)


@pytest.mark.parametrize("recorded", RECORDED["transport"], ids=lambda r: "-".join(r["options"]) or "defaults")
def test_plans(recorded: dict[str, Any]) -> None:
    target, source = (make_activations(name, [("q",)], 4, 4) for name in ("target", "source"))
    options = Transport(**recorded["options"])
    transports = Transports(Pair(target=target, source=source), ("q",), options, RunDir(Path("run")), unused, unused)
    assert transports.key == recorded["plans"]
    assert transports.piece(0, "q.out").stem == recorded["piece"]


@pytest.mark.parametrize("recorded", RECORDED["adaptation"], ids=lambda r: "-".join(r["options"]) or "defaults")
def test_trainings(recorded: dict[str, Any]) -> None:
    assert key(Adaptation(**recorded["options"]).model_dump(exclude=set(NOT_IN_LOSS))) == recorded["key"]


def test_the_records_change_every_option() -> None:
    for section, name in ((Transport, "transport"), (Adaptation, "adaptation")):
        changed = {option for recorded in RECORDED[name] for option in recorded["options"]}
        assert changed == set(section.model_fields), name
