"""What a binary carries: the packages of the frozen environment, CPython, and the system's libraries beside them.

Read from metadata and files alone; nothing of the environment is imported. A licence text that is missing stays missing
here, and is named as such by whoever prints it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from tmerge_tui.errors import TmergeError

# Packages of the frozen environment that do the freezing, or that build/*.spec leaves out.
OUTSIDE = {
    *("pip", "setuptools", "wheel", "triton"),
    *("pyinstaller", "pyinstaller-hooks-contrib", "altgraph", "macholib", "pefile", "pywin32-ctypes"),
}
LICENCE_FILE = re.compile(r"licen[cs]e|copying|notice|copyright|authors|patents", re.IGNORECASE)
NOT_TEXT = {".py", ".pyc", ".pyi", ".so", ".pyd", ".json", ".h", ".hpp", ".c", ".cpp"}

# Libraries that PyInstaller takes from the machine of the build: pattern of the file's name, name, SPDX, home.
GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"
SYSTEM = (
    (r"libpython|python3\d*\.dll|Python$", "CPython", "Python-2.0", "https://www.python.org"),
    (r"libssl|libcrypto", "OpenSSL", "Apache-2.0", "https://openssl-library.org"),
    (r"(lib)?sqlite3", "SQLite", "blessing", "https://sqlite.org"),
    (r"libz[.-]|zlib", "zlib", "Zlib", "https://zlib.net"),
    (r"libexpat", "Expat", "MIT", "https://libexpat.github.io"),
    (r"libbz2", "bzip2", "bzip2-1.0.6", "https://sourceware.org/bzip2"),
    (r"liblzma", "XZ Utils", "0BSD OR LicenseRef-public-domain", "https://tukaani.org/xz"),
    (r"libzstd", "Zstandard", "BSD-3-Clause", "https://facebook.github.io/zstd"),
    (r"libffi", "libffi", "MIT", "https://sourceware.org/libffi"),
    (r"libuuid", "libuuid", "BSD-3-Clause", "https://github.com/util-linux/util-linux"),
    (r"libmpdec", "mpdecimal", "BSD-2-Clause", "https://www.bytereef.org/mpdecimal"),
    (r"lib(tinfo|ncurses|panel)", "ncurses", "X11-distribute-modifications-variant", "https://invisible-island.net/ncurses"),
    (r"libedit", "libedit", "BSD-3-Clause", "https://thrysoee.dk/editline"),
    (r"libreadline", "GNU Readline", "GPL-3.0-or-later", "https://tiswww.case.edu/php/chet/readline/rltop.html"),
    (r"libstdc\+\+|libgcc_s|libgomp|libgfortran|libatomic", "GCC run-time libraries", GCC, "https://gcc.gnu.org"),
    (r"libquadmath", "libquadmath", "LGPL-2.1-or-later", "https://gcc.gnu.org/onlinedocs/libquadmath"),
    (r"vcruntime|msvcp|concrt|vcomp", "Microsoft Visual C++ run-time", "LicenseRef-Microsoft-VC-runtime", "https://visualstudio.microsoft.com"),
    (r"ucrtbase|api-ms-win", "Microsoft Universal C run-time", "LicenseRef-Microsoft-UCRT", "https://visualstudio.microsoft.com"),
    (r"libcu|libnv", "NVIDIA CUDA libraries", "LicenseRef-NVIDIA-Proprietary", "https://docs.nvidia.com/cuda/eula"),
)  # fmt: skip
LIBRARY = re.compile(r"\.so(\.\d+)*$|\.dylib$|\.dll$|^Python$")

# Run with the frozen environment's Python. Versions as the libraries themselves say them, linked in or not.
PROBE = """
import json, platform, pyexpat, sqlite3, ssl, sys, sysconfig, zlib
from pathlib import Path
places = [Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)]
texts = [place / name for place in places for name in ("LICENSE.txt", "LICENSE")]
print(json.dumps({
    "system": sys.platform, "machine": platform.machine(), "site": sysconfig.get_path("purelib"),
    "licence": next((str(path) for path in texts if path.is_file()), None),
    "versions": {
        "CPython": platform.python_version(), "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        "SQLite": sqlite3.sqlite_version, "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "Expat": pyexpat.EXPAT_VERSION.removeprefix("expat_"),
    },
}))
"""


class ReleaseError(TmergeError):
    """Something that keeps a release from being made."""


@dataclass(frozen=True)
class Component:
    """A package, a library or CPython."""

    name: str
    version: str = ""  # empty: not known
    licence: str = ""  # SPDX expression, or what the metadata declares; empty: nothing
    url: str = ""
    texts: tuple[tuple[str, str], ...] = ()  # file name, text
    files: tuple[tuple[str, str], ...] = ()  # file name, SHA-256: libraries of the system only
    compiled_in: tuple[Component, ...] = ()  # Rust crates, as the wheel's own SBOM lists them
    purl: str = ""  # of crates
    native: bool = False  # nothing that pip has installed

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}".rstrip()


@dataclass(frozen=True)
class Environment:
    """The frozen one, as its Python describes it."""

    python: Path
    system: str  # sys.platform
    machine: str  # platform.machine()
    site: Path  # its site-packages
    licence: Path | None  # CPython's own
    versions: dict[str, str]  # of CPython and what it is linked with


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def environment(folder: Path) -> Environment:
    """Raises ReleaseError when there is none."""
    python = python_of(folder)
    if not python.exists():
        raise ReleaseError(f"no environment in {folder}", "the one that was frozen", "make binary")
    found = json.loads(subprocess.run([python, "-I", "-c", PROBE], check=True, capture_output=True, text=True).stdout)
    licence = Path(found["licence"]) if found["licence"] else None
    return Environment(python, found["system"], found["machine"], Path(found["site"]), licence, found["versions"])


def components(env: Environment, engine: Path) -> list[Component]:
    """Everything inside a binary made from `env` but tmerge itself; `engine` is the folder that was packed.

    Raises ReleaseError where CPython's licence is not found, or a licence does not let
    something be passed on with tmerge.
    """
    if env.licence is None:
        raise ReleaseError(
            f"{env.python}: no licence text of CPython",
            "LICENSE or LICENSE.txt in its standard library or prefix",
            "build with a Python from python.org, uv or pyenv",
        )
    installed = list(distributions(path=[str(env.site)]))
    packages = [package(found) for found in installed if normal(found.name) not in {*OUTSIDE, "tmerge-tui"}]
    own = {file.name for found in installed for file in found.files or ()}
    text = (env.licence.name, env.licence.read_text(encoding="utf-8", errors="replace"))
    inside = [*packages, *natives(env, libraries(engine, own), text), *bootloader(installed)]
    for component in [crate for found in inside for crate in (found, *found.compiled_in)]:
        if is_refused(component.licence):
            raise ReleaseError(
                f"{component.title} is under {component.licence} {[name for name, _ in component.files] or ''}",
                "no GPL without an exception for what it is linked with",
                "exclude the module that needs it in build/engine.spec and build/light.spec",
            )
    return sorted(inside, key=lambda component: component.name.lower())


def package(found: Distribution) -> Component:
    texts, inner = tuple(licence_texts(found)), tuple(crates(found))
    return Component(found.name, found.version, declared(found), homepage(found), texts, compiled_in=inner)


def declared(found: Distribution) -> str:
    """The licence that the metadata states, most exact first."""
    metadata = found.metadata
    short = (metadata.get("License") or "").strip()
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    if expression := metadata.get("License-Expression"):
        return expression
    if short and "\n" not in short and short.upper() != "UNKNOWN":
        return short
    return " AND ".join(classifiers)


def homepage(found: Distribution) -> str:
    links = dict(entry.split(", ", 1) for entry in found.metadata.get_all("Project-URL") or () if ", " in entry)
    ordered = sorted(links, key=lambda name: (name.lower() not in ("homepage", "home"), "source" not in name.lower()))
    return found.metadata.get("Home-page") or (links[ordered[0]] if ordered else "")


def licence_texts(found: Distribution) -> Iterator[tuple[str, str]]:
    """(file, text) of every licence, notice and list of authors in the wheel, those of code it has taken over too."""
    for file in sorted(found.files or (), key=str):
        named = LICENCE_FILE.search(file.name) and file.suffix.lower() not in NOT_TEXT
        kept = ".dist-info/licenses/" in file.as_posix() or ".dist-info/license_files/" in file.as_posix()
        path = Path(str(file.locate()))
        if (named or kept) and path.is_file():
            yield re.sub(r"^[^/]*\.dist-info/(licenses/)?", "", file.as_posix()), path.read_text("utf-8", "replace")


def crates(found: Distribution) -> Iterator[Component]:
    """What was compiled into the wheel, where it brings a CycloneDX file that says so (PEP 770)."""
    for file in sorted(found.files or (), key=str):
        if ".dist-info/sboms/" in file.as_posix() and file.name.endswith(".json"):
            bom = json.loads(Path(str(file.locate())).read_text(encoding="utf-8"))
            for entry in bom.get("components", ()):
                # where it lay on the machine that built the wheel is no business of ours
                purl = re.sub(r"[?#].*", "", entry.get("purl", ""))
                yield Component(entry["name"], entry.get("version", ""), spdx(entry.get("licenses", ())), purl=purl)


def spdx(licences: Iterable[dict[str, Any]]) -> str:
    """CycloneDX's licences as one expression."""
    flat = [{**found, **found.get("license", {})} for found in licences]
    return " AND ".join(found.get("expression") or found.get("id") or found.get("name", "") for found in flat)


def libraries(engine: Path, of_wheels: set[str]) -> list[Path]:
    """The system's libraries in a frozen folder: files at its top that no wheel brought, and no links to those."""
    inner = engine / "_internal"
    if not inner.is_dir():
        raise ReleaseError(f"no frozen engine in {engine}", "the folder that the binary was packed from", "make binary")
    found = (path for path in inner.iterdir() if LIBRARY.search(path.name) and path.is_file() and not path.is_symlink())
    return sorted(path for path in found if path.name not in of_wheels)


def natives(env: Environment, found: Iterable[Path], text: tuple[str, str]) -> Iterator[Component]:
    """CPython, what it is linked with, and the system's libraries, one component for files of the same origin."""
    origins = {name: (licence, url) for _, name, licence, url in SYSTEM}
    files: dict[str, list[tuple[str, str]]] = {name: [] for name in env.versions}
    for path in found:
        name = next((name for p, name, *_ in SYSTEM if re.match(p, path.name, re.IGNORECASE)), path.name)
        with open(path, "rb") as stream:
            files.setdefault(name, []).append((path.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    for name, of_it in files.items():
        known, url = origins.get(name, ("", ""))
        texts = (text,) if name == "CPython" else ()
        yield Component(name, env.versions.get(name, ""), known, url, texts, tuple(of_it), native=True)


def bootloader(installed: Iterable[Distribution]) -> Iterator[Component]:
    """The one part of PyInstaller that is in what it makes."""
    for found in installed:
        if normal(found.name) == "pyinstaller":
            licence, home = "GPL-2.0-or-later WITH Bootloader-exception", "https://pyinstaller.org"
            texts = tuple(licence_texts(found))
            yield Component("PyInstaller bootloader", found.version, licence, home, texts, native=True)


def is_refused(licence: str) -> bool:
    """Whether a licence asks that all of tmerge be under it."""
    choices = re.split(r"\bOR\b", licence)
    return all(re.search(r"(?<!L)GPL|(?<!Lesser )General Public", part) and "WITH" not in part for part in choices)


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
