"""The wheel: what is in it, and that it runs without a checkout. References: the package folder, pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tmerge_tui
from tmerge_tui.extras import EXTRAS

ROOT = Path(tmerge_tui.__file__).resolve().parents[1]
NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.pyc")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """Standard output; an exit code other than 0 fails the test with everything that was said."""
    environment = {**os.environ, **more}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build in: a build leaves files behind, and takes up those of an earlier one."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "tmerge_tui", folder / "tmerge_tui", ignore=NOT_SHIPPED)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__", "snapshots"))
    shutil.copytree(ROOT / "build", folder / "build", ignore=shutil.ignore_patterns("out", "data", "lib", "bdist*"))
    shutil.copytree(ROOT / "assets", folder / "assets")
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, tree, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tmerge` of a fresh environment that has the wheel, and everything else from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--no-compile")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=scheme))
    # A folder named in a .pth file comes last, and its own .pth files, such as that of our checkout, do not count.
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "tmerge"


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def shipped(folder: Path) -> dict[str, bytes]:
    """Every file of the package and its assets, by its path in a wheel."""
    places = {folder / "tmerge_tui": "tmerge_tui", folder / "assets": "tmerge_tui/assets"}
    return {
        f"{place}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for root, place in places.items()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_the_wheel_holds_the_whole_package_and_nothing_else(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert held == shipped(tree)
    kinds = {Path(name).suffix for name in held}
    assert kinds >= {".py", ".tcss", ".css", ".jinja", ".yaml", ".safetensors", ".json", ".txt", ".md"}


def test_metadata_entry_point_and_licence(wheel: Path) -> None:
    told = metadata(wheel)
    assert (told["Name"], told["Version"], told["Requires-Python"]) == ("tmerge-tui", tmerge_tui.__version__, ">=3.11")
    assert told["License-Expression"] == "Apache-2.0"
    with zipfile.ZipFile(wheel) as archive:
        files = {name.partition(".dist-info/")[2]: archive.read(name) for name in archive.namelist()}
    assert files["entry_points.txt"].decode().splitlines() == ["[console_scripts]", "tmerge = tmerge_tui.__main__:main"]
    assert files["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_dependencies_and_extras(wheel: Path) -> None:
    told = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist", [])]
    plain = {str(one) for one in told if one.marker is None}
    assert plain == {str(Requirement(one)) for one in PROJECT["dependencies"]}
    assert set(metadata(wheel).get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert set(EXTRAS) <= set(PROJECT["optional-dependencies"]), "messages name extras that there are"
    for extra in PROJECT["optional-dependencies"]:
        wanted = {canonicalize_name(Requirement(one).name) for one in PROJECT["optional-dependencies"][extra]}
        assert {
            canonicalize_name(one.name) for one in told if one.marker and one.marker.evaluate({"extra": extra})
        } == wanted
        assert extra not in EXTRAS or canonicalize_name(EXTRAS[extra].package) in wanted


def test_the_source_archive_holds_what_a_wheel_is_built_from(tree: Path, tmp_path: Path) -> None:
    code = f"from hatchling import build as backend; backend.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    (found,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name.replace("tmerge_tui/assets/", "assets/") for name in shipped(tree)}
    assert names >= {*wanted, "pyproject.toml", "README.md", "LICENSE"}


def test_installed_it_runs_from_an_empty_folder(program: Path, tmp_path: Path) -> None:
    python = program.parent / "python"
    where = run(python, "-c", "import tmerge_tui; print(tmerge_tui.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(program.parents[1]), "the wheel, not the checkout"
    assert run(program, "--version", cwd=tmp_path) == f"tmerge {tmerge_tui.__version__}\n"
    assert "llama" in run(program, "models", cwd=tmp_path).lower()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_installed_it_merges_the_demo(program: Path, tmp_path: Path) -> None:
    """A short one: models, text, templates and stylesheets come out of the wheel, the worker starts from it."""
    short = ("fusion.alpha=0.1", "calibration.samples=40", "calibration.holdout=20", "evaluation.controls=[]")
    settings = [part for setting in short for part in ("--set", setting)]
    said = run(program, "demo", "--output", "out", "--quiet", *settings, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert "bits per byte" in said
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made >= {"model", "report.html", "report.md", "report.json", "recipe.yaml"}
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
