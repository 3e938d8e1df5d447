"""Mutated recipes: a clear error, or a recipe that reads back as itself."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.soak.edits import edited, edited_bytes, paths, propose_bytes, propose_structure
from tests.soak.judge import Campaign, Edit
from tmerge_tui.recipe import dump_recipe, load_recipe, make_recipe, parse_recipe

BASE: dict[str, Any] = yaml.safe_load(
    dump_recipe(
        make_recipe(
            {
                "source": "org/a@v1", "target": {"model": "folder/b", "trust_remote_code": False}, "output": "run",
                "calibration": {"path": "text.txt", "column": "text"}, 
                "fusion": {"alpha": [0.1, 0.3], "layers": [0, 1]},
                "adaptation": {"hints": {}, "distill_weight": 1.0, "seeds": [0, 1]},
                "evaluation": {"tasks": ["piqa"], "choices": ["q.jsonl"], "prompts": ["Once"]}, "memory": "8GB",
            }
        )
    )
)  # fmt: skip
PLACES = list(paths(BASE))
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where it is there
LAUGHS = "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + LAUGHS,
    "[" * 3000, "{a: " * 3000, "- " * 5000, "source: &x [*x]\n", "source: !!python/name:os.system\n",
    "source: !!python/object/apply:os.system [touch entered]\n", "seed: " + "9" * 6000 + "\n", "a: 2026-99-99\n",
    "? [a, b]\n: c\n", "<<: [1]\n", 'source: "\\ud800"\n', "output: ~\n", "seed: 1:30:00\n", "a" * 2_000_000,
    "%YAML 9.9\n---\na: b\n", "--- a\n--- b\n",
)  # fmt: skip


def propose(dice: Random) -> list[Edit]:
    roll = dice.random()
    if roll < 0.02:
        return [("bomb", dice.randrange(len(BOMBS)))]
    if roll < 0.25:
        return [("bytes", edit) for edit in propose_bytes(dice)]
    return [("value", edit) for edit in propose_structure(dice, PLACES)]


def attempt(edits: list[Edit], folder: Path) -> None:
    data = edited(BASE, [edit for kind, edit in edits if kind == "value"])
    try:
        text = yaml.dump(data, Dumper=DUMPER, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return  # no one can write it down
    text = edited_bytes(text, [edit for kind, edit in edits if kind == "bytes"])
    for kind, number in edits:
        text = BOMBS[number].encode("utf-8", "surrogatepass") if kind == "bomb" else text
    file = folder / "recipe.yaml"
    file.write_bytes(text)
    recipe = load_recipe(file)
    assert parse_recipe(dump_recipe(recipe)) == recipe, "a recipe that does not read back as itself"


RECIPES = Campaign("recipes", 10_000, propose, attempt)
