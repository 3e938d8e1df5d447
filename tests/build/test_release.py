"""Releases: what is handed over, and what keeps one from being made. References: tarfile, zipfile.

A small executable and a fresh environment stand for the real ones; the tools that an index is needed for are left out.
"""

from __future__ import annotations

import json
import sys
import tarfile
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import archive
import inside
import pytest
import release
import sbom
from inside import Environment, ReleaseError

from tests.build.stand_ins import described, executable, install
from tmerge_tui import __version__

EPOCH = 1_700_000_000
HERE = "linux-x86_64"
posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")


@posix
def test_binary_says_what_it_is(tmp_path: Path) -> None:
    found = release.examine(executable(tmp_path / "tmerge"), "0123456789")
    assert found == release.Edition(__version__, "0123456789", "CPU")
    assert release.variant(found) == release.variant(release.Edition("1", "", "Metal")) == []
    assert release.variant(release.Edition("1", "", "CUDA 13.0")) == ["cuda"]


@posix
@pytest.mark.parametrize(
    ("says", "code", "told"),
    [
        (None, 0, "no .*tmerge\n.*expected.*\n.*make binary"),
        ("tmerge 9.9.9 (commit 0123456789, CPU build)", 0, "is version 9.9.9"),
        (
            f"tmerge {__version__} (commit 0123456789+, CPU build)",
            0,
            r"commit 0123456789\+\n.*expected: 0123456789, without",
        ),
        (f"tmerge {__version__} (CPU build)", 0, "commit unknown"),
        ("Segmentation fault", 139, "exit code 139, 'Segmentation fault'"),
    ],
)
def test_another_binary_is_refused(tmp_path: Path, says: str | None, code: int, told: str) -> None:
    if says is not None:
        executable(tmp_path / "tmerge", says, code)
    with pytest.raises(ReleaseError, match=told):
        release.examine(tmp_path / "tmerge", "0123456789")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout after `make binary`, with everything but the tools that an index is needed for."""
    root = tmp_path / "checkout"
    folder = root / "build" / "out" / "venv"
    venv.create(folder, with_pip=False)
    install(
        inside.environment(folder).site,
        "alpha",
        "1",
        "License-Expression: MIT\n",
        {"licenses/LICENSE": "Words of MIT.\n"},
    )
    (root / "build" / "out" / "freeze" / "dist" / "engine" / "_internal").mkdir(parents=True)
    for name in release.READABLE:
        (root / name).write_text(name)
    executable(root / "dist" / "tmerge")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    monkeypatch.setattr(release, "installed_tools", lambda root: Path(sys.executable))
    monkeypatch.setattr(sbom, "described", lambda *_: described("alpha"))
    monkeypatch.setattr(sbom, "validated", lambda tools, bom: json.dumps(bom))
    monkeypatch.setattr(release, "platform_of", lambda env: HERE)
    return root


@posix
def test_release_holds_what_it_should(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dist, name = root / "dist", f"tmerge-{__version__}-{HERE}"
    release.pack(root, dist, "0123456789")
    sums = archive.check(dist)
    assert set(sums) == {f"{name}.tar.gz", "sbom.cdx.json", "THIRD_PARTY_LICENSES.txt"}
    with tarfile.open(dist / f"{name}.tar.gz") as made:
        files = ("CHANGELOG.md", "LICENSE", "README.md", "THIRD_PARTY_LICENSES.txt", "sbom.cdx.json", "tmerge")
        assert made.getnames() == [f"{name}/{file}" for file in files]
        made.extractall(root / "unpacked", filter="data")
    assert release.examine(root / "unpacked" / name / "tmerge", "0123456789").build == "CPU"
    bom = json.loads((root / "unpacked" / name / "sbom.cdx.json").read_text())
    assert bom["metadata"]["component"]["hashes"][0]["content"] == archive.sha256(dist / "tmerge")
    assert "no licence text: OpenSSL" in capsys.readouterr().out

    release.pack(root, dist, "0123456789")
    assert archive.check(dist) == sums


def test_release_for_windows_is_a_zip(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("tmerge.exe", release.BOM, release.THIRD_PARTY)]
    for file in files:
        file.write_text(file.name)
    release.write(tmp_path, "tmerge-1-windows-x86_64", files, EPOCH, release.LIMIT)
    with zipfile.ZipFile(tmp_path / "tmerge-1-windows-x86_64.zip") as made:
        assert made.read("tmerge-1-windows-x86_64/tmerge.exe") == b"tmerge.exe"
    assert "tmerge-1-windows-x86_64.zip" in archive.check(tmp_path)


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("linux", "x86_64", "linux-x86_64"),
        ("linux", "aarch64", "linux-arm64"),
        ("darwin", "arm64", "macos-arm64"),
        ("win32", "AMD64", "windows-x86_64"),
    ],
)
def test_names_of_platforms(env: Environment, system: str, machine: str, name: str) -> None:
    assert release.platform_of(replace(env, system=system, machine=machine)) == name


@posix
def test_large_release_comes_in_parts(root: Path) -> None:
    executable(root / "dist" / "tmerge", f"tmerge {__version__} (commit 0123456789, CUDA 13.0 build)")
    release.pack(root, root / "dist", "0123456789", limit=5000)
    name = f"tmerge-{__version__}-{HERE}-cuda.tar.gz"
    files = {path.name for path in (root / "dist").glob("tmerge-*")}
    assert {f"{name}.part01", f"{name}.part02"} <= files and name not in files
    assert name in archive.check(root / "dist")
    part = root / "dist" / f"{name}.part02"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ReleaseError, match=rf"{name} was changed, {part.name} was changed"):
        archive.check(root / "dist")


def machine(folder: Path, name: str, parts: int = 0, version: str = __version__) -> None:
    """What one machine hands over."""
    folder.mkdir(parents=True)
    whole = folder / f"tmerge-{version}-{name}.tar.gz"
    whole.write_text(name)
    bom = folder / "sbom.cdx.json"
    bom.write_text(name)
    made = archive.split(whole, len(name) // 2 if parts else 1000)
    archive.write_sums(folder / archive.SUMS, {file.name: archive.sha256(file) for file in {whole, *made, bom}})
    if parts:
        whole.unlink()


def test_machines_are_collected(tmp_path: Path) -> None:
    machine(tmp_path / "made" / "one", "macos-arm64")
    machine(tmp_path / "made" / "two", "linux-x86_64-cuda!", parts=2)
    sums = release.collect(__version__, tmp_path / "made", tmp_path / "all")
    mac, cuda = f"tmerge-{__version__}-macos-arm64", f"tmerge-{__version__}-linux-x86_64-cuda!"
    files = {
        f"{mac}.tar.gz",
        f"{mac}.sbom.cdx.json",
        *(f"{cuda}.{end}" for end in ("tar.gz.part01", "tar.gz.part02", "sbom.cdx.json")),
    }
    assert {path.name for path in (tmp_path / "all").iterdir()} == {*files, archive.SUMS}
    assert set(sums) == {*files, f"{cuda}.tar.gz"}
    assert archive.check(tmp_path / "all") == sums
    notes = release.notes("- All of it.", sums)
    assert notes.startswith("- All of it.")
    assert f"cat {cuda}.tar.gz.part01 {cuda}.tar.gz.part02 > {cuda}.tar.gz" in notes and f"> {mac}" not in notes


def test_what_is_collected_is_checked(tmp_path: Path) -> None:
    machine(tmp_path / "changed" / "one", "macos-arm64")
    (tmp_path / "changed" / "one" / "sbom.cdx.json").write_text("other")
    with pytest.raises(ReleaseError, match=r"sbom.cdx.json was changed"):
        release.collect(__version__, tmp_path / "changed", tmp_path / "a")
    machine(tmp_path / "old" / "one", "macos-arm64", version="0.0.1")
    with pytest.raises(ReleaseError, match=r"0.0.1(.*\n)+.*one archive of version"):
        release.collect(__version__, tmp_path / "old", tmp_path / "b")
    machine(tmp_path / "twice" / "one", "macos-arm64")
    machine(tmp_path / "twice" / "two", "macos-arm64")
    with pytest.raises(ReleaseError, match="another in each folder"):
        release.collect(__version__, tmp_path / "twice", tmp_path / "c")
    (tmp_path / "none").mkdir()
    with pytest.raises(ReleaseError, match="nothing in"):
        release.collect(__version__, tmp_path / "none", tmp_path / "d")


def test_tag_has_to_be_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.check_tag(f"v{__version__}") == __version__
    for tag in ("v9.9.9", __version__, f"v{__version__}rc1"):
        assert release.main(["check", tag]) == 1
        assert f"tag {tag}\n  expected: v{__version__}" in capsys.readouterr().err


def test_changelog_has_to_say_something(tmp_path: Path) -> None:
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [1.0.0] - 2026-01-01\n\n### Added\n- More.\n\n## [0.9.0]\n\n[1.0.0]: x\n"
    )
    assert release.section("1.0.0", changelog) == "### Added\n- More."
    for version in ("0.9.0", "2.0.0", "1.0"):
        with pytest.raises(ReleaseError, match=rf"says nothing of {version}\n.*\n.*Unreleased"):
            release.section(version, changelog)


def test_the_date_is_given_or_the_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    assert release.epoch() == 5
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    monkeypatch.setattr(release, "git", lambda *_: "7")
    assert release.epoch() == 7
    monkeypatch.setattr(release, "git", lambda *_: "")
    with pytest.raises(ReleaseError, match="SOURCE_DATE_EPOCH"):
        release.epoch()
    with pytest.raises(ReleaseError, match="names no commit"):
        release.head()
