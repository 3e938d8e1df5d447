"""Rooms import one way, and what has to start fast does not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tmerge_tui

PACKAGE = Path(tmerge_tui.__file__).parent
# A room may import itself, earlier rooms of the list, and nothing else of ours.
ROOMS = [
    {"stopping"}, {"system"}, {"quantities"}, {"visible"}, {"shipped"},
    {"errors"}, {"events"}, {"extras"}, {"files"}, {"edition"}, {"bundle"}, {"machine"},
    {"recipe"}, {"run_folder"},
    {"models", "hub"}, {"engine"}, {"worker"}, {"commands", "cli", "tui", "__main__"},
]  # fmt: skip
# Inside the engine likewise.
ENGINE = [
    {"progress", "resources", "part"}, {"optimal_transport"}, {"data"}, {"activations"}, {"prepared"}, {"weights"},
    {"methods"}, {"evaluation"}, {"training"}, {"report"}, {"preflight"}, {"pipeline"}, {"comparison"},
]  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
FLOOR = {room: floor for floor, rooms in enumerate(ENGINE) for room in rooms}
# The wizard and the command line are neighbours: each may reach the other only where it opens it.
OPENS = {("cli", "tui"), ("__main__", "cli"), ("cli", "commands"), ("__main__", "commands")}
LAZY = ("torch", "transformers", "textual", "datasets", "accelerate", "ot", "pyarrow", "peft", "lm_eval")
TORCH_FREE = [
    "errors",
    "events",
    "extras",
    "files",
    "edition",
    "bundle",
    "machine",
    "stopping",
    "system",
    "quantities",
    "visible",
    "recipe",
    "run_folder",
    "shipped",
    "cli",
    "commands",
    "hub",
    "tui",
    "__main__",
]
TORCH_FREE += [f"worker/{name}" for name in ("follow", "journal", "lock", "main", "spawn", "state")]
TORCH_FREE += ["engine/progress", "engine/resources"]
TORCH_FREE += [
    f"engine/report/{name}" for name in ("names", "verdict", "training_verdict", "next_steps")
]  # the wizard's

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Absolute names imported by a file; those for type checkers alone do not count."""

    def walk(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            yield node
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from walk(getattr(node, field, []))

    for node in walk(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "tmerge_tui" or len(parts) == 1 or parts[1] == "__version__":
            continue
        other = parts[1]
        allowed = other == room or RANK[other] < RANK[room] or (room, other) in OPENS
        assert allowed, f"{path.relative_to(PACKAGE)} ({room}) imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "engine").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_inside_the_engine_too(path: Path) -> None:
    room = path.relative_to(PACKAGE / "engine").with_suffix("").parts[0]
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["tmerge_tui", "engine"] and room != "__init__" and parts[2] != room:
            assert FLOOR[parts[2]] < FLOOR[room], f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_engine_neither_prints_nor_knows_a_screen(path: Path) -> None:
    if room_of(path) not in ("engine", "models", "hub"):
        return
    assert not [n for n in imports(path) if n.split(".")[0] in ("rich", "textual", "click")]
    calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not [c for c in calls if isinstance(c, ast.Name) and c.id == "print"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_is_not_imported_at_the_top_of_the_screens_side(path: Path) -> None:
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if not any(name == free or name.startswith(f"{free}/") for free in TORCH_FREE):
        return
    heavy = [n for n in imports(path, top_only=True) if n.split(".")[0] in LAZY]
    heavy = [n for n in heavy if not (room_of(path) == "tui" and n.startswith("textual"))]
    assert not heavy, f"{name} imports {heavy}"


@pytest.mark.parametrize(
    "statement",
    [
        "import sys; sys.argv = ['tmerge', '--version']; from tmerge_tui.__main__ import main; main()",
        "import sys; sys.argv = ['tmerge', '--help']; from tmerge_tui.__main__ import main; main()",
        "from tmerge_tui.worker import follow, spawn\nfrom tmerge_tui.commands import batch, render",
    ],
)
def test_what_must_be_quick_loads_nothing_heavy(statement: str) -> None:
    heavy = {"torch", "transformers", "textual", "datasets", "pyarrow", "numpy"}
    heavy |= set() if "worker" in statement else {"pydantic", "rich", "yaml", "psutil"}
    code = f"{statement}\nimport sys; print(*sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_the_wizard_draws_a_run_and_its_result_without_the_engine() -> None:
    """The terminal part of the binary has none of these."""
    heavy = {"torch", "numpy", "jinja2", "safetensors", "transformers"}
    code = f"from tmerge_tui.tui.screens import result, run\nimport sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_first_screen_waits_for_neither_recipe_nor_hub() -> None:
    slow = {"torch", "numpy", "pydantic", "yaml", "huggingface_hub"}
    code = f"import tmerge_tui.tui.screens.home, sys; print(*sorted({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
