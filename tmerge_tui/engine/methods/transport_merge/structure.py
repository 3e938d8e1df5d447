"""Structure that plans keep (`transport.structure`): sides of a layer that are matched by one plan.

neurons: gate, up and down of a feed-forward are three views of the same neurons, so gate.out, up.out and down.in share
one plan. Its cost is the mean of theirs: z-scores [T, n] of S sides, stacked to [S T, n] and divided by sqrt(S), have
products Zx^T Zy = (1/S) sum_s rho_s, so that the solver sees one larger problem of the same kind and epsilon keeps its
meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

from tmerge_tui.models.layout import Layout
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport

NEURONS = ("gate.out", "up.out", "down.in")
Group = tuple[str, ...]  # sides under one plan, whose pieces are those of the first


def groups(layouts: Pair[Layout], kinds: Sequence[str], options: Transport) -> tuple[tuple[Group, ...], list[str]]:
    """(the groups of sides that share a plan, what was asked for and does not apply, in words)."""
    if "neurons" not in options.structure:
        return (), []
    for role, layout in layouts.items():
        for layer in range(layout.layers):
            widths = {layout.width(layer, side) for side in layout.sides(layer, kinds) if side in NEURONS}
            if len(widths) > 1:
                return (), [_note(f"in layer {layer} of the {role} they are {sorted(w or 0 for w in widths)} wide")]
    group = tuple(side for side in NEURONS if all(_everywhere(layout, side, kinds) for _, layout in layouts.items()))
    if len(group) > 1:
        missing = [side for side in NEURONS if side not in group]
        without = f"structure: neurons goes without {', '.join(missing)}: not aligned in every layer of both models"
        return (group,), [without] if missing else []
    return (), [_note("fewer than two of them are aligned in every layer of both models")]


def _everywhere(layout: Layout, side: str, kinds: Sequence[str]) -> bool:
    """Whether every layer with a side of the feed-forward has this one, and one does."""
    found = [layout.sides(layer, kinds) for layer in range(layout.layers)]
    there = [sides for sides in found if set(sides) & set(NEURONS)]
    return bool(there) and all(side in sides for sides in there)


def _note(why: str) -> str:
    return f"structure: neurons does not apply, plans are solved side by side: of {', '.join(NEURONS)}, {why}"
