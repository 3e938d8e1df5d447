"""dist/licences.md and dist/vulnerabilities.json: what a bill of materials holds, under which licences, and what is
known against it.

    python3 build/audit.py [BOM]       dist/sbom.cdx.json of `make release`, unless another is named

Licences are read from the bill alone. Vulnerabilities are asked for with pip-audit, which needs PyPI and a database on
the network; where either is out of reach that is said, and the list is not written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOL = "pip-audit==2.10.1"
PATIENCE = 300  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bom", nargs="?", type=Path, default=ROOT / "dist" / "sbom.cdx.json")
    parser.add_argument("--offline", action="store_true", help="licences only")
    args = parser.parse_args(arguments)
    if not args.bom.is_file():
        print(f"audit: no {args.bom}; make release writes it", file=sys.stderr)
        return 2
    parts = json.loads(args.bom.read_text(encoding="utf-8")).get("components", [])
    folder = args.bom.parent
    (folder / "licences.md").write_text("\n".join(licences(parts)) + "\n", encoding="utf-8", newline="\n")
    print(f"{folder / 'licences.md'}: {len(parts)} components")
    if not args.offline:
        print(vulnerabilities(parts, folder / "vulnerabilities.json"))
    return 0


def licences(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A table in Markdown: components by licence."""
    yield "| component | version | licence |"
    yield "| --- | --- | --- |"
    for part in sorted(parts, key=lambda part: (licence_of(part), part["name"].lower())):
        cells = (part["name"], part.get("version", ""), licence_of(part))
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


def licence_of(part: dict[str, Any]) -> str:
    said = [one.get("expression") or _name(one.get("license", {})) for one in part.get("licenses", [])]
    return ", ".join(sorted(filter(None, said))) or "none declared"


def _name(licence: dict[str, Any]) -> str:
    return str(licence.get("id") or licence.get("name") or "")


def vulnerabilities(parts: Sequence[dict[str, Any]], out: Path) -> str:
    """Asks about every package of PyPI among `parts`; what came of it, in a line."""
    pins = sorted({f"{p['name']}=={p['version']}" for p in parts if str(p.get("purl", "")).startswith("pkg:pypi/")})
    place = ROOT / "build" / "out" / "audit"
    wanted = place / "pins.txt"
    try:
        if not (place / "pyvenv.cfg").is_file():
            venv.create(place, with_pip=True)
        python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", TOOL], check=True, timeout=PATIENCE)
        wanted.write_text("\n".join(pins) + "\n", encoding="utf-8")
        told = ("--requirement", str(wanted), "--no-deps", "--disable-pip", "--format", "json", "--output", str(out))
        done = subprocess.run([python, "-m", "pip_audit", *told], capture_output=True, text=True, timeout=PATIENCE)
        found = json.loads(out.read_text(encoding="utf-8"))["dependencies"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        return f"vulnerabilities: NOT CHECKED: {type(error).__name__}: pip-audit or its database is out of reach"
    known = [(one["name"], len(one["vulns"])) for one in found if one.get("vulns")]
    told_of = ", ".join(f"{name} {count}" for name, count in known) or "none"
    return f"{out}: {len(found)} packages, known vulnerabilities: {told_of} (pip-audit's exit code {done.returncode})"


if __name__ == "__main__":
    sys.exit(main())
