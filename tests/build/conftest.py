"""Stand-ins for what a release is made of. The scripts of build/ import each other by name: build/ is on the path."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "build"))

from inside import Environment

from tests.build.stand_ins import CRATES, install


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    """A frozen environment: three packages, what froze them, and CPython's licence."""
    site = tmp_path / "site"
    texts = {"licenses/LICENSE": "Words of MIT.\n", "licenses/vendored/COPYING": "Words of zlib.\n"}
    install(site, "alpha", "1.0", "License-Expression: MIT\n", texts)
    install(site, "beta", "2.0", "License: Apache 2.0 License\n", {"sboms/beta.cdx.json": json.dumps(CRATES)})
    install(
        site, "gamma", "3.0", "Classifier: License :: OSI Approved :: MIT License\n", {"LICENSE": "Words of MIT.\n"}
    )
    install(site, "pyinstaller", "6.0", "License: GPLv2\n", {"licenses/COPYING.txt": "Words of PyInstaller.\n"})
    install(site, "altgraph", "0.1", "License: MIT\n", {"LICENSE": "Words of altgraph.\n"})
    licence = tmp_path / "LICENSE.txt"
    licence.write_text("Words of CPython.\n")
    return Environment(
        Path(sys.executable), "linux", "x86_64", site, licence, {"CPython": "3.12.1", "OpenSSL": "3.0.1"}
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    inner = tmp_path / "engine" / "_internal"
    inner.mkdir(parents=True)
    for name in ("libssl.so.3", "libcrypto.so.3", "libodd.so.1", "data.txt"):
        (inner / name).write_text(name)
    return inner.parent
