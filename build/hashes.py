"""constraints.hashes.txt: every pin of constraints.txt with the SHA-256 of each of its files on PyPI.

    python3 build/hashes.py        writes it; needs `uv` and PyPI
    make pinned                    installs exactly that, with pip in hash-checking mode, into build/out/pinned

For each platform and Python that is supported every pin must have a wheel, but for SOURCES, which no one has built.
A test (`tests/build/test_hashes.py`) holds the two files together.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS, HASHES = ROOT / "constraints.txt", ROOT / "constraints.hashes.txt"
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")
PYTHONS = ("3.11", "3.12", "3.13")
SOURCES = ("rouge-score", "sqlitedict", "word2number")  # what lm-eval needs and no one has built
HEAD = """\
# Made by build/hashes.py: constraints.txt with the SHA-256 of every file of each version.
# Every pin has a wheel for {platforms}
# and Python {pythons}; only {sources} come as source. macOS 14 is the oldest.
"""


def main() -> int:
    sources = [f"--no-binary={name}" for name in SOURCES]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "hashes.txt"
        for platform in PLATFORMS:
            for python in PYTHONS:
                print(f"wheels for {platform}, Python {python}", flush=True)
                _compile(out, ["--only-binary=:all:", *sources, f"--python-platform={platform}"], python)
        _compile(out, ["--universal"], PYTHONS[0])
        body = out.read_text(encoding="utf-8")
    head = HEAD.format(platforms=", ".join(PLATFORMS), pythons=", ".join(PYTHONS), sources=", ".join(SOURCES))
    HASHES.write_text(head + body, encoding="utf-8", newline="\n")
    return 0


def _compile(out: Path, more: Sequence[str], python: str) -> None:
    """Raises CalledProcessError where a pin has no file for that platform."""
    told = ("--no-deps", "--generate-hashes", "--no-annotate", "--no-header", "--quiet", f"--python-version={python}")
    surroundings = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest that torch's wheels are made for
    subprocess.run(["uv", "pip", "compile", *told, *more, str(PINS), "-o", str(out)], check=True, env=surroundings)


if __name__ == "__main__":
    sys.exit(main())
