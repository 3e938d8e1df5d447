"""The list of licences from a bill of materials; what cannot be asked is said."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import audit
import pytest

PARTS = [
    {"name": "b|ad", "version": "1", "licenses": [{"license": {"id": "MIT"}}], "purl": "pkg:pypi/bad@1"},
    {"name": "Zed", "version": "2", "licenses": [{"expression": "Apache-2.0 OR MIT"}], "purl": "pkg:pypi/zed@2"},
    {"name": "glibc", "version": "2.28", "licenses": [{"license": {"name": "GNU Lesser"}}]},
    {"name": "odd", "version": "3"},
]


def test_components_by_licence(tmp_path: Path) -> None:
    bom = tmp_path / "sbom.cdx.json"
    bom.write_text(json.dumps({"components": PARTS}))
    assert audit.main([str(bom), "--offline"]) == 0
    lines = (tmp_path / "licences.md").read_text("utf-8").splitlines()[2:]
    assert lines == [
        "| Zed | 2 | Apache-2.0 OR MIT |", "| glibc | 2.28 | GNU Lesser |", "| b/ad | 1 | MIT |",
        "| odd | 3 | none declared |",
    ]  # fmt: skip
    assert audit.main([str(tmp_path / "none.json")]) == 2


def test_without_a_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(
        audit.venv, "create", lambda *_, **__: (tmp_path / "build" / "out" / "audit").mkdir(parents=True)
    )
    monkeypatch.setattr(audit.subprocess, "run", refused)
    assert "NOT CHECKED" in audit.vulnerabilities(PARTS, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
