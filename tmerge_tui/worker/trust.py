"""Whose Python code may run here.

`trust_remote_code` in a recipe makes the code run that comes with a model, and anyone may have written the recipe. So
a person is asked, once for each model and revision; the answer is a line {"code": name} in the user's state folder.
Nothing that opens models for a recipe starts without it: commands, the wizard's helper, the worker.
"""

from __future__ import annotations

import json

from tmerge_tui.errors import UsageError
from tmerge_tui.files import storage
from tmerge_tui.recipe import Recipe
from tmerge_tui.worker.run_index import state_folder

NAME = "trusted.jsonl"


def untrusted(recipe: Recipe) -> tuple[str, ...]:
    """The models whose own code the recipe lets run and nobody has allowed yet: a folder, or org/name@revision."""
    wanted = dict.fromkeys(
        f"{choice.model}@{choice.revision}" if choice.revision else choice.model
        for choice in (recipe.source, recipe.target)
        if choice.trust_remote_code
    )
    return tuple(name for name in wanted if name not in _allowed()) if wanted else ()


def trust(names: tuple[str, ...]) -> None:
    """Keeps a person's yes. Raises StorageError."""
    file = state_folder() / NAME
    with storage(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"code": name}, ensure_ascii=False) + "\n" for name in names)


def refuse(recipe: Recipe) -> None:
    """Raises UsageError when code would run that nobody has allowed."""
    names = untrusted(recipe)
    if names:
        raise UsageError(
            f"this recipe runs Python code that comes with {' and '.join(names)} (trust_remote_code)",
            "a person who has read that code and allows it",
            "read it, then add --trust to tmerge --batch, check or resume; or take trust_remote_code out of the recipe",
        )


def _allowed() -> set[str]:
    try:
        lines = (state_folder() / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    names = set()
    for line in lines:
        try:
            names.add(str(json.loads(line)["code"]))
        except (ValueError, TypeError, KeyError):
            continue  # torn by a full disk
    return names
