"""report.json of a run as the panes read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    path: Path  # run folder
    results: Mapping[str, Any]  # report.json

    def part(self, key: str) -> Any:
        """A part that was handed in; None when it is absent or empty."""
        return self.results.get(key) or None

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The written models; there is always one."""
        return self.results.get("output") or [{"alpha": None, "folder": "model"}]

    @property
    def best(self) -> dict[str, Any]:
        """The written model that the verdict is about."""
        verdict = self.results.get("verdict", {})
        name, alpha = verdict.get("output"), verdict.get("alpha")
        if name:
            return next((one for one in self.outputs if one["folder"] == name), self.outputs[0])
        # of an earlier version, which told outputs by their strength
        return next((one for one in self.outputs if one["alpha"] == alpha), self.outputs[0])

    @property
    def model_folder(self) -> Path:
        return self.path / self.best["folder"]


def label(output: Mapping[str, Any]) -> str:
    """What tells one written model from the others."""
    alpha = "model" if output["alpha"] is None else f"{output['alpha']:g}"
    return alpha + (" trained" if output.get("trained") else "")
