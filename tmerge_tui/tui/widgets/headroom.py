"""What scout has found, as text: the plain sentence, headroom with its interval, the time of each arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from textual.content import Content

from tmerge_tui.quantities import bits, duration, interval, known, signed, size

ROWS = (
    ("both_tuned", "after both have learnt"),
    ("against_tuned_target", "against the tuned target"),
    ("untouched", "both as they are"),
)


def verdict_of(found: Mapping[str, Any]) -> Content:
    """The sentence, green only where there is headroom."""
    mark, ink = ("✓", "$success") if found["outcome"] == "headroom" else ("○", "$warning")
    return Content.styled(f"{mark} {found['verdict']}", ink)


def findings(found: Mapping[str, Any], width: int) -> Content:
    """Everything, for a pane of `width` columns."""
    return Content("\n").join([verdict_of(found), *_lines(found, min(width, 72))])


def _lines(found: Mapping[str, Any], width: int) -> Iterator[Content]:
    for sentence in found["sentences"]:
        yield Content.styled(f"  {sentence}", "$text-muted")
    if found["models"]:
        yield Content("")
        yield Content.styled(f"{'bits per byte':<16}{'as it is':>10}{'tuned':>10}", "$text-muted")
        for role, one in found["models"].items():
            yield Content(f"{role:<16}{bits(one['before']):>10}{bits(one['after']):>10}")
        yield Content.styled("headroom: source minus target, 95 % interval", "$text-muted")
        for name, title in ROWS:
            row = found["headroom"][name]
            if row:
                between = interval(row["low"], row["high"])
                yield Content.assemble(f"{title:<26}", (f"{signed(row['difference']):>8}", "bold"), f"  {between}")
    yield Content("")
    said = found["tokenizers"]
    yield Content.assemble(
        ("tokenizers  ", "$text-muted"),
        f"{_share(said['shared_vocabulary'])} of the vocabulary shared, "
        f"{_share(said['positions_with_teacher'])} of positions with a teacher",
    )
    for one in found["pending"]:
        yield Content.styled(f"on the Hub  {one['name']}: {size(one['bytes'])}", "$warning")
    yield from _times(found, width)


def _times(found: Mapping[str, Any], width: int) -> Iterator[Content]:
    needs = found["estimate"]
    by = "measured by scout" if needs["scouted"] else "estimated"
    yield Content("")
    yield Content.assemble(("time on ", "$text-muted"), found["device"], (f", {by}", "$text-muted"))
    for arm in found["arms"]:
        seeds = f" ({arm['seeds']} seeds)" if arm["seeds"] > 1 else ""
        yield _row(arm["title"] + seeds, duration(arm["seconds"]), width)
    most = "at most " if needs["bound"] else "about "
    yield _row("the whole recipe", most + duration(needs["seconds"]), width).stylize("bold")


def _row(title: str, value: str, width: int) -> Content:
    room = max(width - len(value) - 2, 8)
    name = title if len(title) <= room else title[: room - 1] + "…"
    return Content(f"  {name:<{room}}{value}")


def _share(value: Any) -> str:
    share = known(value)
    return "unknown" if share is None else f"{share:.0%}"
