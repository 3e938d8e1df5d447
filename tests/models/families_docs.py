"""The two tables of docs/families.md, from the catalogue and from tiny models of the families.

    python -m tests.models.families_docs

writes them anew; test_catalogue fails while the page has others.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.families import FAMILIES as TINY
from tests.families import make_family
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.families.catalogue import FAMILIES, REFUSED
from tmerge_tui.models.layout import Layout
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.projections import match
from tmerge_tui.recipe import PROJECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
LETTERS = {"q": "q", "k": "k", "v": "v", "o": "o", "gate": "g", "up": "u", "down": "d"}


def layouts(folder: Path, families: tuple[str, ...] = tuple(TINY)) -> dict[str, Layout]:
    """The layout of a tiny model of each family."""
    return {family: read_facts(make_family(folder / family, family), family).layout for family in families}


def family_table() -> str:
    lines = ["| `model_type` | models | projections | stored | |", "|---|---|---|---|---|"]
    for f in FAMILIES:
        stored = " or ".join(way or "a tensor each" for way in f.stored)
        lines.append(f"| `{f.model_type}` | {f.known_as} | {' '.join(f.projections)} | {stored} | {f.note} |")
    return "\n".join(lines)


def refused_list() -> str:
    return "\n".join(f"* {what}: {instead}" for what, instead in REFUSED)


def matrix_table(found: dict[str, Layout], families: tuple[str, ...]) -> str:
    """What is fused for every pair: targets down, sources across."""
    lines = [f"| target \\ source | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
    for target in families:
        kinds = [match(Pair(target=found[target], source=found[source]), PROJECTIONS).kinds for source in families]
        lines.append(f"| {target} | " + " | ".join("".join(LETTERS[k] for k in each) for each in kinds) + " |")
    return "\n".join(lines)


def page(text: str, found: dict[str, Layout], families: tuple[str, ...]) -> str:
    """`text` with what is between each pair of markers written anew."""
    parts = {"families": family_table(), "refused": refused_list(), "matrix": matrix_table(found, families)}
    for name, content in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        text = f"{head}{begin}{content}\n{end}{tail}"
    return text


if __name__ == "__main__":
    from tests.engine.test_matrix import LAYOUTS

    with tempfile.TemporaryDirectory() as folder:
        chosen = tuple(LAYOUTS)
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), layouts(Path(folder), chosen), chosen), encoding="utf-8")
