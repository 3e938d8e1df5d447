"""What a run takes, in words and colour: the same line on Method and on Review."""

from __future__ import annotations

import asyncio
from typing import Any

from textual.content import Content

from tmerge_tui.quantities import duration, size
from tmerge_tui.tui import catalog
from tmerge_tui.tui.draft import ROLES, Draft
from tmerge_tui.tui.helper import Probe

LONG = 3600.0  # seconds from which on the time is shown in amber


async def ask_needs(draft: Draft, probe: Probe) -> dict[str, Any] | None:
    """The helper's estimate of the draft as it is; None while a model is missing. Raises TmergeError."""
    data = {**draft.data(), "output": draft.get("output") or "runs/new"}
    data.setdefault("calibration", {"path": "text.txt"})
    names = {role: str(draft.get(f"{role}.model") or "") for role in ROLES}
    if not all(names.values()):
        return None
    found = {role: await asyncio.to_thread(catalog.resolve, name) for role, name in names.items()}
    models: dict[str, Any] = {role: catalog.model_args(one) for role, one in found.items()}
    answer: dict[str, Any] = await probe.ask("estimate", recipe=data, **models)
    return answer


def source_of_time(said: dict[str, Any]) -> str:
    """`measured by scout`, or what the time is otherwise from."""
    return "measured by scout" if said.get("scouted") else "estimated, f9 on Review measures them"


def told(said: dict[str, Any]) -> Content:
    """`about 3 min 07 s on cpu   memory 1.2 GB   disk 340 MB`; red where it does not fit, amber where it is long."""
    seconds = said["seconds"]
    too_much = any("of memory," in problem for problem in said.get("problems", ()))
    time = "$warning bold" if seconds is not None and seconds > LONG else "bold"
    parts: list[Any] = [
        ("at most " if said.get("bound") else "about ", "$text-muted"),
        (duration(seconds), time),
        (f" on {said['device']}{', measured by scout' if said.get('scouted') else ''}   memory ", "$text-muted"),
        (size(said["memory"]), "$error bold" if too_much else "$warning bold" if said.get("notes") else "bold"),
        ("   disk ", "$text-muted"),
        (size(said["disk"]), "bold"),
    ]
    if said["download"]:
        parts += [("   download ", "$text-muted"), (size(said["download"]), "bold")]
    if said.get("unpack"):
        parts += [("   unpacked ", "$text-muted"), (size(said["unpack"]), "bold")]
    if too_much:
        parts.append(("   does not fit this machine", "$error"))
    elif said.get("notes"):
        parts.append(("   streamed: slower", "$warning"))
    return Content.assemble(*parts)
