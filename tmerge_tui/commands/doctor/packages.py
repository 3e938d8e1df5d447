"""tmerge itself, Python, the packages it needs, and the optional extras."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

from tmerge_tui import bundle
from tmerge_tui import extras as optional
from tmerge_tui.commands.doctor.finding import Finding, Level
from tmerge_tui.edition import edition

PACKAGE = "tmerge-tui"
NAMED = ("torch", "transformers", "textual", "huggingface-hub", "pot", "pyarrow")


def findings() -> Iterator[Finding]:
    frozen = bool(getattr(sys, "frozen", False))
    yield Finding("tmerge", str(edition()) + (", single file" if frozen else ""), facts={"frozen": frozen})
    yield python()
    if frozen:  # what is inside was pinned when it was built
        yield Finding("packages", _listed(edition().packages), facts=dict(edition().packages))
    else:
        yield from installed()


def python() -> Finding:
    version, system = platform.python_version(), platform.platform()
    old = sys.version_info < (3, 11)
    return Finding(
        "python",
        f"{version} on {system}",
        "use Python 3.11 or newer" if old else "",
        Level.MISSING if old else Level.OK,
        {"version": version, "system": system, "machine": platform.machine()},
    )


def installed() -> Iterator[Finding]:
    """The packages that tmerge requires, as its own metadata lists them: versions, and what is absent or too old."""
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages", "not checked: tmerge runs from a folder and is not installed", "pip install .", Level.NOTE
        )
        return
    versions, wrong = {}, []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(Finding(requirement.name, "missing", f'pip install "{requirement}"', Level.MISSING))
            continue
        versions[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}, and tmerge needs {requirement.specifier}"
            wrong.append(Finding(requirement.name, found, f'pip install "{requirement}"', Level.PROBLEM))
    yield Finding("packages", _listed({name: versions[name] for name in NAMED if name in versions}), facts=versions)
    yield from wrong


def extras() -> Iterator[Finding]:
    """Optional packages: nothing is wrong without them."""
    for name, extra in optional.EXTRAS.items():
        # the terminal part of the binary has none of the engine's packages, but knows what was built in
        there = extra.package in edition().packages if bundle.is_split() else optional.present(name)
        found = f"{extra.package} is there" if there else "not installed"
        advice = "" if there else optional.how_to_get(name)
        level = Level.OK if there else Level.NOTE
        yield Finding(f"extra {name}", f"{found}: {extra.adds}", advice, level, {"present": there})


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
