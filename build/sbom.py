"""sbom.cdx.json: the bill of materials of a binary, in CycloneDX.

`cyclonedx-py` describes the frozen environment. What pip does not know is added (CPython, what it is linked with, the
system's libraries, crates inside wheels), what only does the freezing is taken out, and the result is validated again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inside import OUTSIDE, Component, Environment, ReleaseError, normal

VERSION = "1.6"  # of the schema
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
problem = JsonStrictValidator(SchemaVersion.from_version(sys.argv[1])).validate_str(sys.stdin.read())
sys.exit(f"{problem}" if problem else 0)
"""

Bom = dict[str, Any]


def described(tools: Path, env: Environment, project: Path, epoch: int) -> Bom:
    """What `cyclonedx-py` says of the environment; `tools` is the Python that has it."""
    command = [
        *(str(tools), "-m", "cyclonedx_py", "environment", "--output-reproducible", "--spec-version", VERSION),
        *("--mc-type", "application", "--pyproject", str(project), str(env.python)),
    ]
    surroundings = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=surroundings)
    return json.loads(done.stdout)


def completed(bom: Bom, inside: Sequence[Component], version: str, sha256: str) -> Bom:
    """`bom` with exactly the components of `inside`, for the tmerge whose executable has that hash.

    Raises ReleaseError where `bom` lacks a package.
    """
    root = bom["metadata"]["component"]
    root.update(name="tmerge", version=version, hashes=[{"alg": "SHA-256", "content": sha256}])
    out = {entry["bom-ref"] for entry in bom["components"] if normal(entry["name"]) in OUTSIDE}
    packages = {normal(entry["name"]): entry for entry in bom["components"] if entry["bom-ref"] not in out}
    native = [component for component in inside if component.native]
    missing = [c.name for c in inside if not c.native and normal(c.name) not in packages]
    if missing:
        raise ReleaseError(f"the bill of materials lacks {', '.join(missing)}", "every package of the environment")
    for component in inside:
        if component.native:
            continue
        entry = packages[normal(component.name)]
        if component.licence and not entry.get("licenses"):  # declared in words, which cyclonedx-py leaves out
            entry["licenses"] = [{"license": {"name": component.licence}}]
        if component.compiled_in:
            entry["components"] = _unique(map(_crate, component.compiled_in))
    bom["components"] = sorted([*packages.values(), *map(_native, native)], key=lambda entry: entry["bom-ref"])

    links = [link for link in bom["dependencies"] if link["ref"] not in out]
    for link in links:
        if "dependsOn" in link:
            link["dependsOn"] = [ref for ref in link["dependsOn"] if ref not in out]
        if link["ref"] == root["bom-ref"]:
            link["dependsOn"] = sorted([*link.get("dependsOn", ()), *(_ref(component) for component in native)])
    bom["dependencies"] = sorted([*links, *({"ref": _ref(c)} for c in native)], key=lambda link: link["ref"])
    return bom


def validated(tools: Path, bom: Bom) -> str:
    """The text of the file. Raises ReleaseError when it is no CycloneDX."""
    text = json.dumps(bom, indent=2, ensure_ascii=False) + "\n"
    done = subprocess.run(
        [str(tools), "-c", VALIDATE, VERSION], input=text, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode != 0:
        raise ReleaseError(f"the bill of materials is not valid: {done.stderr.strip()[-500:]}", f"CycloneDX {VERSION}")
    return text


def _native(component: Component) -> Bom:
    entry: Bom = {"bom-ref": _ref(component), "type": "library", "name": component.name}
    if component.version:
        entry["version"] = component.version
    entry["licenses"] = [{"expression": component.licence}] if component.licence else []
    if component.url:
        entry["externalReferences"] = [{"type": "website", "url": component.url}]
    if component.files:
        hashed = [
            {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
            for name, digest in component.files
        ]
        entry["components"] = hashed
    return entry


def _crate(component: Component) -> Bom:
    entry: Bom = {"type": "library", "name": component.name, "version": component.version}
    if component.licence:
        entry["licenses"] = [{"expression": component.licence}]
    if component.purl:
        entry["purl"] = component.purl
    return entry


def _unique(entries: Any) -> list[Bom]:
    """Sorted, each once: the schema allows no two that are equal."""
    return [json.loads(text) for text in sorted({json.dumps(entry) for entry in entries})]


def _ref(component: Component) -> str:
    return f"native:{component.name.replace(' ', '-')}"
