"""`tmerge presets`: the paper's tasks that a recipe may start from."""

from __future__ import annotations

from tmerge_tui.commands.output import data, say
from tmerge_tui.recipe.presets import FOLDER, PREFIX, preset_cards, read_preset


def presets(name: str | None) -> int:
    """Lists them, or prints the recipe of one. Raises RecipeError for one that is not there."""
    if name is not None:
        name = name.removeprefix(PREFIX)
        read_preset(name)
        data((FOLDER / f"{name}.yaml").read_text(encoding="utf-8").rstrip())
        return 0
    for card in preset_cards():
        data(f"{card.name:<11} {card.title}")
        data(f"{'':<11} text {card.data}")
        data(f"{'':<11} sets {card.sets}")
    say("tmerge presets NAME prints one as a recipe; tmerge --batch preset:NAME runs it")
    return 0
