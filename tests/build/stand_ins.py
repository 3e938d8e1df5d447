"""A small executable, packages of metadata alone, and a bill of materials written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmerge_tui import __version__

CRATES = {
    "components": [
        {
            "name": "ahash",
            "version": "1.0",
            "licenses": [{"expression": "MIT OR Apache-2.0"}],
            "purl": "pkg:cargo/ahash@1.0",
        },
        {"name": "own", "version": "2.0", "purl": "pkg:cargo/own@2.0?download_url=file:///home/runner/own"},
    ]
}


def executable(path: Path, says: str = f"tmerge {__version__} (commit 0123456789, CPU build)", code: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def install(site: Path, name: str, version: str, metadata: str = "", files: Mapping[str, str] | None = None) -> None:
    """A package of metadata alone; `files` are those of its dist-info folder, or others from ../ on."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}")
    for file, text in (files or {}).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    record = [path.resolve().relative_to(site.resolve()) for path in map(folder.joinpath, files or {})]
    (folder / "RECORD").write_text("".join(f"{path.as_posix()},,\n" for path in record))


def described(*names: str) -> dict[str, Any]:
    """What cyclonedx-py would say of an environment."""
    entries = [{"bom-ref": f"{name}==1", "name": name, "type": "library"} for name in names]
    links = [
        {"ref": "root-component", "dependsOn": [e["bom-ref"] for e in entries]},
        *({"ref": e["bom-ref"]} for e in entries),
    ]
    return {"metadata": {"component": {"bom-ref": "root-component"}}, "components": entries, "dependencies": links}
