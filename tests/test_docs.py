"""What the documents say of the tree is true: files, rooms and names. Reference: the files themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.test_imports import ENGINE, FLOOR, PACKAGE, RANK, ROOMS
from tmerge_tui.recipe import Recipe, make_recipe, options

ROOT = Path(__file__).parents[1]
DOCS = ("adaptation", "evaluation", "methods", "safety", "files")
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in DOCS))
LINE = re.compile(r"((?:│   |    )*)(?:├── |└── )(\S+) +(\S.*)")
NAMED = re.compile(r"`([\w./-]+\.(?:py|md|json|jinja|toml|txt|spec|tcss))`(?:\s+\(((?:`\w+`(?:,\s+)?)+)\))?")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def tree() -> list[tuple[str, str]]:
    """(path inside the package, what is said of it) of every line of docs/files.md; folders end in a slash."""
    found, folders = [], [""]
    for line in read("docs/files.md").splitlines():
        match = LINE.fullmatch(line)
        if match:
            indent, name, said = match.groups()
            depth = len(indent) // 4
            path = folders[depth] + name
            found.append((path, said))
            folders[depth + 1 :] = [path]
    return found


def test_every_file_has_its_line() -> None:
    listed = [path for path, _ in tree()]
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    there = [f"{path.parent.as_posix()}/" if path.name == "__init__.py" else path.as_posix() for path in files]
    assert sorted(listed) == sorted(path for path in there if path != "./")


def test_the_rooms_in_the_readme_are_there() -> None:
    """Two spaces a level; a line may name several, and what is not a folder or a .py is text."""
    folders = [ROOT]
    lines = re.findall(r"^    ( *)(\S.*)", read("README.md").split("## The files\n")[1], re.MULTILINE)
    for indent, line in lines:
        depth = len(indent) // 2
        names = re.findall(r"^(?:[\w/]+(?:/|\.py)(?:\s+|$))+", line)[0].split()
        assert all((folders[depth] / name).exists() for name in names), line
        folders[depth + 1 :] = [folders[depth] / names[0]]
    assert len(lines) > 15


def test_rooms_stand_in_the_order_of_imports() -> None:
    parts = [Path(path).with_suffix("").parts for path, _ in tree()]
    ranks = [RANK[first] for first, *_ in parts]
    floors = [FLOOR[inside[1]] for inside in parts if inside[0] == "engine" and len(inside) > 1]
    assert ranks == sorted(ranks) and floors == sorted(floors)


@pytest.mark.parametrize(("path", "said"), [(p, s) for p, s in tree() if re.search(r"\(.*(eqs?\. |A\.)\d", s)])
def test_the_equations_of_a_file_stand_in_it(path: str, said: str) -> None:
    text = (PACKAGE / path).read_text(encoding="utf-8")
    for number in re.findall(r"A\.\d(?:-A\.\d)?|\d+(?:-\d+)?", said[said.rindex("(") :]):
        named = rf"{re.escape(number)}\b" if number.startswith("A") else rf"eqs?\. [\d, -]*\b{number}\b"
        assert re.search(named, text), f"{path}: {number}"


def test_the_house_is_the_one_that_the_imports_keep() -> None:
    blocks = re.findall(r"(?:^    .*<-.*\n)+", read("CONTRIBUTING.md"), re.MULTILINE)
    orders = [[set(re.findall(r"\w+", floor)) for floor in " ".join(block.split()).split("<-")] for block in blocks]
    assert orders == [ROOMS, ENGINE]


def how_to() -> list[tuple[str, str]]:
    text = read("CONTRIBUTING.md").split("## How to add\n")[1]
    return [(path, names or "") for path, names in NAMED.findall(text) if "NAME" not in path]


@pytest.mark.parametrize(("path", "names"), how_to())
def test_where_to_add_something_is_there(path: str, names: str) -> None:
    text = read(path)
    for name in re.findall(r"\w+", names):
        assert re.search(rf"\b{name}\b", text), f"{path} has no {name}"


def test_how_to_add_has_a_list_for_each() -> None:
    headings = re.findall(r"^\*\*(.+?)\*\*", read("CONTRIBUTING.md").split("## How to add\n")[1], re.MULTILINE)
    wanted = {"An option", "A merge method", "A loss term", "A measurement", "A screen", "A model family"}
    assert wanted <= set(headings) and len(how_to()) > 40


@pytest.mark.parametrize(
    "page",
    [
        *PAGES,
        "docs/cluster.md",
        "docs/releases.md",
        "docs/families.md",
        "docs/table.md",
        "docs/what_changed.md",
        "SECURITY.md",
    ],
)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    text = read(page)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    paths = [path for path in re.findall(r"`([\w.]+/[\w./-]+\.\w+)`", text) if "NAME" not in path]
    ours = [
        path for path in paths if path.split("/")[0] in ("tmerge_tui", "tests", "build", "docs", "assets", ".github")
    ]
    assert not [path for path in ours if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_options_that_are_named_exist(page: str) -> None:
    """`section.option` in a text, for every section of the recipe."""
    known = {name for name, _ in options()} | {name.rpartition(".")[0] for name, _ in options()}
    sections = "|".join(name for name in Recipe.model_fields if any(k.startswith(f"{name}.") for k in known))
    named = re.findall(rf"`((?:{sections})\.[a-z_.]*[a-z_])[`:]", read(page))
    assert not [name for name in named if name not in known and not name.endswith((".py", ".md"))]


EXAMPLES = [(page, text) for page in PAGES for text in re.findall(r"^```yaml\n(.+?)^```", read(page), re.M | re.S)]


@pytest.mark.parametrize(("page", "text"), EXAMPLES, ids=[f"{page}-{i}" for i, (page, _) in enumerate(EXAMPLES)])
def test_examples_are_recipes(page: str, text: str) -> None:
    given = yaml.safe_load(text)
    whole = {"source": "org/large", "target": "org/small", "output": "run", **given}
    whole["calibration"] = {"path": "text.txt", **given.get("calibration", {})}
    make_recipe(whole)
