"""A draft and the starting points of recipe/starts.py: which one it stands at, and how it takes one."""

from __future__ import annotations

from typing import Any

from tmerge_tui.tui.draft import SWITCHES, Draft, default, same


def take_start(draft: Draft, name: str) -> None:
    """What a start says, and nothing of what the others say; all other settings stay as they are."""
    for each, value in _wanted(name).items():
        draft.set(each, value)


def start_of(draft: Draft) -> str:
    """The start whose settings these are; empty when they are a person's own."""
    from tmerge_tui.recipe.starts import STARTS

    return next((one.name for one in STARTS if not differing(draft, one.name)), "")


def differing(draft: Draft, start: str) -> list[str]:
    """What of all that any start says stands otherwise than this one has it."""
    found = {name: draft.get(name) if draft.offers(name) else default(name) for name in _wanted(start)}
    return [name for name, value in _wanted(start).items() if not same(found[name], value)]


def with_start(draft: Draft, name: str) -> Draft:
    """A copy that has taken a start."""
    copy = Draft(draft.values)
    take_start(copy, name)
    return copy


def _wanted(name: str) -> dict[str, Any]:
    """The value of every option that any start says, and whether the sections that they lie in are on."""
    from tmerge_tui.recipe.starts import settings

    said = settings(name)
    mine = [switch for switch in SWITCHES if any(n.startswith(f"{switch}.") for n in said)]
    on = {switch: any(n.startswith(f"{switch}.") and v is not None for n, v in said.items()) for switch in mine}
    return {**on, **{n: default(n) if value is None else value for n, value in said.items()}}
