"""Makes what a release consists of, from dist/tmerge and the environment that was frozen into it.

    python3 build/release.py                   archive, bill of materials, licences and checksums, in dist/
    python3 build/release.py check v0.1.0      whether that tag can be released: version and changelog
    python3 build/release.py collect v0.1.0 --from DIR --to DIR
                                               what several machines have made, checked, in one folder; prints the notes

The first needs dist/tmerge, build/out/venv and build/out/freeze of `make binary`, and PyPI once for its own tools
(build/tools.txt, into build/out/tools). Nothing else is needed: no package, only Python 3.11 or newer.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import archive  # noqa: E402
import licences  # noqa: E402
import sbom  # noqa: E402
from inside import Environment, ReleaseError, components, environment, python_of  # noqa: E402

from tmerge_tui import __version__  # noqa: E402

BOM, THIRD_PARTY = "sbom.cdx.json", "THIRD_PARTY_LICENSES.txt"
READABLE = ("README.md", "CHANGELOG.md", "LICENSE")
LIMIT = 19 * 2**30 // 10  # bytes: a file of a GitHub release must stay under 2 GiB
ARCHIVE = re.compile(r"\.(tar\.gz|zip)$")
SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}
MACHINES = {"amd64": "x86_64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Edition:
    """What `tmerge --version` says of a binary."""

    version: str
    commit: str  # abbreviated; + at its end: files had been changed
    build: str  # CPU, CUDA 13.0, ROCm 6.4 or Metal


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--any-commit", action="store_true", help="for a trial: a binary of another commit")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("check", help="whether a tag can be released").add_argument("tag")
    collecting = commands.add_parser("collect", help="several machines' files into one folder")
    collecting.add_argument("tag")
    collecting.add_argument("--from", dest="source", type=Path, required=True, help="with a folder for each")
    collecting.add_argument("--to", type=Path, required=True, help="a new folder")
    args = parser.parse_args(arguments)
    try:
        if args.command == "check":
            section(check_tag(args.tag))
        elif args.command == "collect":
            version = check_tag(args.tag)
            print(notes(section(version), collect(version, args.source, args.to)))
        else:
            pack(ROOT, ROOT / "dist", commit=None if args.any_commit else head())
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def pack(root: Path, dist: Path, commit: str | None, limit: int = LIMIT) -> None:
    """Writes archive, bill of materials, licences and checksums of dist/tmerge; `commit` is what it has to be of."""
    env = environment(root / "build" / "out" / "venv")
    binary = dist / ("tmerge.exe" if env.system == "win32" else "tmerge")
    edition = examine(binary, commit)
    name = "-".join(["tmerge", edition.version, platform_of(env), *variant(edition)])
    when = epoch()
    inside = components(env, root / "build" / "out" / "freeze" / "dist" / "engine")

    third_party = dist / THIRD_PARTY
    third_party.write_text(licences.document(name, inside), encoding="utf-8", newline="\n")
    for line in licences.without_text(inside):
        print(f"no licence text: {line}")
    tools = installed_tools(root)
    described = sbom.described(tools, env, root / "pyproject.toml", when)
    completed = sbom.completed(described, inside, edition.version, archive.sha256(binary))
    bom = dist / BOM
    bom.write_text(sbom.validated(tools, completed), encoding="utf-8", newline="\n")

    write(dist, name, [binary, third_party, bom, *(root / file for file in READABLE)], when, limit)


def write(dist: Path, name: str, files: Sequence[Path], when: int, limit: int) -> None:
    """The archive of `files`, the executable first among them, its parts where it is too large, and the checksums."""
    whole = dist / (name + (".zip" if files[0].suffix == ".exe" else ".tar.gz"))
    for old in dist.glob(f"{whole.name}*"):
        old.unlink()
    archive.make(whole, {f"{name}/{file.name}": file for file in files}, f"{name}/{files[0].name}", when)
    made = archive.split(whole, limit)
    sums = {file.name: archive.sha256(file) for file in {whole, *made, dist / BOM, dist / THIRD_PARTY}}
    if made != [whole]:
        whole.unlink()
    archive.write_sums(dist / archive.SUMS, sums)
    for file in [*made, dist / BOM, dist / THIRD_PARTY, dist / archive.SUMS]:
        print(f"{file}: {file.stat().st_size / 1e6:,.1f} MB")


def examine(binary: Path, commit: str | None) -> Edition:
    """What the binary says of itself. Raises ReleaseError when it is not there, does not start, or is not of this
    version and commit."""
    if not binary.is_file():
        raise ReleaseError(f"no {binary}", "the executable", "make binary")
    done = subprocess.run([binary, "--version"], capture_output=True, text=True)
    said = re.fullmatch(r"tmerge (\S+)(?: \((?:commit (\S+), )?(.+) build\))?", done.stdout.strip())
    if done.returncode != 0 or said is None:
        told = (done.stdout + done.stderr).strip()[-300:]
        raise ReleaseError(f"{binary} --version: exit code {done.returncode}, {told!r}", "its version", "make binary")
    edition = Edition(said[1], said[2] or "", said[3] or "CPU")
    if edition.version != __version__:
        raise ReleaseError(f"{binary} is version {edition.version}", f"{__version__}, as here", "make binary")
    if commit is not None and edition.commit != commit:
        raise ReleaseError(
            f"{binary} was made from commit {edition.commit or 'unknown'}",
            f"{commit}, without changed files",
            "commit, then make binary; --any-commit for a trial",
        )
    return edition


def platform_of(env: Environment) -> str:
    """linux-x86_64, macos-arm64, windows-x86_64."""
    machine = env.machine.lower()
    return f"{SYSTEMS.get(env.system, env.system)}-{MACHINES.get(machine, machine)}"


def variant(edition: Edition) -> list[str]:
    """Nothing for the ordinary build of a platform, or what its torch was built for."""
    kind = edition.build.split()[0].lower()
    return [] if kind in ("cpu", "metal") else [kind]


def installed_tools(root: Path) -> Path:
    """The Python of an environment with the tools of build/tools.txt, made on first use and when their pins change."""
    folder, pins = root / "build" / "out" / "tools", root / "build" / "tools.txt"
    stamp = folder / pins.name
    if not stamp.is_file() or stamp.read_bytes() != pins.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(pins)], check=True)
        shutil.copy(pins, stamp)
    return python_of(folder)


def git(*arguments: str) -> str:
    """What git says; empty outside a checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def head() -> str:
    """The commit that a binary made here now would name."""
    found = git("rev-parse", "--short=10", "HEAD")
    if not found:
        raise ReleaseError("git names no commit here", "a checkout that git trusts", "see git status")
    return found


def epoch() -> int:
    """Seconds of the commit's date, which stand for the time of the release."""
    found = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    if not found:
        raise ReleaseError("no date: this is no git checkout", "a commit or SOURCE_DATE_EPOCH", "set SOURCE_DATE_EPOCH")
    return int(found)


def check_tag(tag: str) -> str:
    """Its version. Raises ReleaseError when that is not the package's."""
    if tag != f"v{__version__}":
        raise ReleaseError(
            f"tag {tag}",
            f"v{__version__}, the version of tmerge_tui",
            "change __version__ and pyproject.toml, or the tag",
        )
    return __version__


def section(version: str, changelog: Path = ROOT / "CHANGELOG.md") -> str:
    """What the changelog says of a version. Raises ReleaseError when it says nothing."""
    text = changelog.read_text(encoding="utf-8")
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ReleaseError(
            f"{changelog.name} says nothing of {version}",
            f"a section '## [{version}] - date'",
            "move what is under Unreleased into it",
        )
    return found[1].strip()


def collect(version: str, source: Path, to: Path) -> dict[str, str]:
    """Checks each folder in `source` and moves its files to `to`, under names that say of which binary they are.

    Returns the checksums of all, which it writes too. Raises ReleaseError when a file is missing or changed, or when a
    folder holds anything but one archive of this version that no other holds.
    """
    sums: dict[str, str] = {}
    to.mkdir(parents=True)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        found = archive.check(folder)
        wholes = [name for name in found if ARCHIVE.search(name)]
        if len(wholes) != 1 or not wholes[0].startswith(f"tmerge-{version}-") or wholes[0] in sums:
            raise ReleaseError(f"{folder} holds {wholes}", f"one archive of version {version}, another in each folder")
        stem = ARCHIVE.sub("", wholes[0])
        for name, digest in found.items():
            new = name if name.startswith(stem) else f"{stem}.{name}"
            if (folder / name).is_file():  # not there: the whole of parts
                shutil.move(folder / name, to / new)
            sums[new] = digest
    if not sums:
        raise ReleaseError(f"nothing in {source}", "one folder for each machine")
    archive.write_sums(to / archive.SUMS, sums)
    return sums


def notes(changes: str, sums: dict[str, str]) -> str:
    """Markdown: what is new, how to check a download, how to join what was split."""
    lines = [changes, "", "## Checking a download", "", "    sha256sum --ignore-missing -c SHA256SUMS"]
    for whole in sorted(sums):
        if parts := archive.parts_of(whole, sums, Path()):
            names = [part.name for part in parts]
            lines += ["", f"`{whole}` comes in {len(names)} parts, to be joined before it is checked:", ""]
            lines += [f"    cat {' '.join(names)} > {whole}", f"    copy /b {'+'.join(names)} {whole}    (Windows)"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
