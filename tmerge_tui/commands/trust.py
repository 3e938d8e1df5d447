"""Asks before the Python code of a model runs that a recipe trusts."""

from __future__ import annotations

import sys

from tmerge_tui.commands.output import say
from tmerge_tui.errors import UsageError
from tmerge_tui.recipe import Recipe
from tmerge_tui.visible import visible
from tmerge_tui.worker import trust


def settle(recipe: Recipe, trusted: bool) -> None:
    """Returns when all code that `recipe` would run is allowed: before, by --trust (`trusted`), or by an answer now.

    Raises UsageError where no one can be asked, or the answer is no; StorageError when the answer cannot be kept.
    """
    names = trust.untrusted(recipe)
    if not names:
        return
    if not trusted:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            trust.refuse(recipe)
        say("This recipe runs Python code that comes with a model, with all that you may do on this machine:")
        for name in names:
            say(f"  {name}")
        print(visible("Have you read that code, and may it run? [y/N] "), end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("that code was not allowed", "an answer of yes", "nothing was run or written")
    trust.trust(names)
