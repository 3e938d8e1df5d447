"""Structure that plans keep (`transport.structure`): sides of a layer that are matched by one plan.

neurons: gate, up and down of a feed-forward are three views of the same neurons, so gate.out, up.out and down.in share
one plan. residual: what attention and feed-forward read (qkv.in, mlp.in) and what they add (o.out, down.out) are four
views of the same channels of the stream. The cost of such a plan is the mean of theirs: z-scores [T, n] of S sides,
stacked to [S T, n] and divided by sqrt(S), have products Zx^T Zy = (1/S) sum_s rho_s, so that the solver sees one
larger problem of the same kind and epsilon keeps its meaning. Whole heads are for `head_plans`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tmerge_tui.models.layout import Layout
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Transport

Group = tuple[str, ...]  # sides under one plan, whose pieces are those of the first
NEURONS: Group = ("gate.out", "up.out", "down.in")
RESIDUAL: Group = ("qkv.in", "o.out", "mlp.in", "down.out")
GROUPS = {"neurons": NEURONS, "residual": RESIDUAL}


def groups(layouts: Pair[Layout], kinds: Sequence[str], options: Transport) -> tuple[tuple[Group, ...], list[str]]:
    """(the groups of sides that share a plan, what was asked for and does not apply, in words)."""
    found: list[Group] = []
    notices: list[str] = []
    for name, sides in GROUPS.items():
        if name in options.structure:
            group, said = _group(name, sides, layouts, kinds)
            found += [group] if group else []
            notices += said
    return tuple(found), notices


def _group(name: str, wanted: Group, layouts: Pair[Layout], kinds: Sequence[str]) -> tuple[Group, list[str]]:
    for role, layout in layouts.items():
        for layer in range(layout.layers):
            widths = {layout.width(layer, side) for side in layout.sides(layer, kinds) if side in wanted}
            if len(widths) > 1:
                told = f"in layer {layer} of the {role} they are {sorted(w or 0 for w in widths)} wide"
                return (), [_note(name, wanted, told)]
    group = tuple(side for side in wanted if all(_everywhere(one, side, wanted, kinds) for _, one in layouts.items()))
    if len(group) > 1:
        missing = [side for side in wanted if side not in group]
        without = f"structure: {name} goes without {', '.join(missing)}: not aligned in every layer of both models"
        return group, [without] if missing else []
    return (), [_note(name, wanted, "fewer than two of them are aligned in every layer of both models")]


def _everywhere(layout: Layout, side: str, wanted: Group, kinds: Sequence[str]) -> bool:
    """Whether every layer with one of the sides has this one, and one does."""
    found = [layout.sides(layer, kinds) for layer in range(layout.layers)]
    there = [sides for sides in found if set(sides) & set(wanted)]
    return bool(there) and all(side in sides for sides in there)


def _note(name: str, wanted: Group, why: str) -> str:
    return f"structure: {name} does not apply, plans are solved side by side: of {', '.join(wanted)}, {why}"
